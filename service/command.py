"""The ``troll`` command: the objective alone can be installed without what it needs."""


def main() -> None:
    """Run the command, or exit with a sentence that says what to install."""
    try:
        from service.cli import app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("service"):
            raise
        raise SystemExit(
            f"troll: {error.name} is not installed. The command needs the service: pip install 'troll-rft[service]'"
        ) from error
    app()
