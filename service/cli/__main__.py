"""``python -m service.cli`` is ``troll``."""

from service.cli import app

if __name__ == "__main__":
    app(prog_name="troll")
