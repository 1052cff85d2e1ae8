"""``python -m migrations`` brings the database to the newest revision."""

from migrations.upgrade import upgrade

if __name__ == "__main__":
    upgrade()
