#!/bin/sh
# Run by the PostgreSQL image when it makes its data folder, and by hand when a password changes or an earlier version's
# deployment is upgraded: the logins of the processes, each with its password. None is a superuser or owns anything; the
# migrations say what each may do. A password is in TROLL_API_PASSWORD, or in the file that TROLL_API_PASSWORD_FILE names.
set -eu
for login in API WORKER CONTROL OPERATOR; do
    variable=TROLL_${login}_PASSWORD
    eval "password=\${$variable:-} file=\${${variable}_FILE:-}"
    [ -n "$password" ] || password=$(cat "${file:?no $variable and no ${variable}_FILE is set}")
    export "$variable=$password"
done
psql --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
SET log_min_error_statement = panic;
\getenv api TROLL_API_PASSWORD
\getenv worker TROLL_WORKER_PASSWORD
\getenv control TROLL_CONTROL_PASSWORD
\getenv operator TROLL_OPERATOR_PASSWORD
SELECT format('CREATE ROLE %I', name)
FROM unnest(ARRAY['troll_api', 'troll_worker', 'troll_control', 'troll_operator']) AS name
WHERE to_regrole(name) IS NULL \gexec
ALTER ROLE troll_api LOGIN PASSWORD :'api';
ALTER ROLE troll_worker LOGIN PASSWORD :'worker';
ALTER ROLE troll_control LOGIN PASSWORD :'control';
ALTER ROLE troll_operator LOGIN PASSWORD :'operator';
SQL
