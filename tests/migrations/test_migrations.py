"""The migrations and the models say the same."""

from migrations.upgrade import check, upgrade


def test_models_and_migrations_agree(database: object) -> None:
    check()


def test_upgrading_again_changes_nothing(database: object) -> None:
    upgrade()
    check()
