"""The ``troll`` command."""

import typer

from service.cli import admin, exports, files, graders, keys, models, stack, webhooks, workers
from service.cli.api import api
from service.cli.chat import chat
from service.cli.check import check
from service.cli.compare import compare
from service.cli.doctor import doctor
from service.cli.failure import Commands
from service.cli.jobs import commands as job_commands
from service.cli.jobs import follow, submit
from service.cli.report import report
from service.cli.tensorboard import tensorboard
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
app.command("doctor")(doctor)
app.command("check")(check)
app.command("submit")(submit)
app.command("follow")(follow)
app.command("compare")(compare)
app.command("report")(report)
app.command("pull")(exports.pull)
app.command("push")(exports.push)
app.command("tensorboard")(tensorboard)
app.command("chat")(chat)
app.command("usage")(usage)
app.command("api")(api)
app.add_typer(job_commands, name="jobs")
app.add_typer(models.commands, name="models")
app.add_typer(exports.commands, name="exports")
app.add_typer(files.commands, name="files")
app.add_typer(graders.commands, name="graders")
app.add_typer(webhooks.commands, name="webhooks")
app.add_typer(keys.commands, name="keys")
app.add_typer(workers.commands, name="workers")
app.add_typer(admin.commands, name="admin")
