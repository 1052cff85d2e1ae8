#!/bin/sh
# Run by the PostgreSQL image when it makes its data folder: the login that API and workers use. It is no superuser and
# owns nothing; the first migration grants it the roles under which row-level security holds.
set -eu
psql --set=ON_ERROR_STOP=1 --set=password="$TROLL_DATABASE_PASSWORD" --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE troll LOGIN PASSWORD :'password';
SQL
