"""The ``troll`` command."""

import typer

from service.cli import admin, exports, keys, models, stack, workers
from service.cli.chat import chat
from service.cli.check import check
from service.cli.failure import Commands
from service.cli.jobs import commands as job_commands
from service.cli.jobs import follow, submit
from service.cli.usage import usage

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Self-hosted reinforcement fine-tuning behind OpenAI's fine-tuning API.",
)
app.command("up")(stack.up)
app.command("down")(stack.down)
app.command("demo")(stack.demo)
app.command("check")(check)
app.command("submit")(submit)
app.command("follow")(follow)
app.command("pull")(exports.pull)
app.command("push")(exports.push)
app.command("chat")(chat)
app.command("usage")(usage)
app.add_typer(job_commands, name="jobs")
app.add_typer(models.commands, name="models")
app.add_typer(exports.commands, name="exports")
app.add_typer(keys.commands, name="keys")
app.add_typer(workers.commands, name="workers")
app.add_typer(admin.commands, name="admin")
