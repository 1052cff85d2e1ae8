#!/bin/sh
# The secrets of docker-compose.yml, each in a file: sh deploy/make-secrets.sh [FOLDER], where FOLDER is ./secrets.
# A password or key that is there already is kept; one that the environment has (TROLL_API_PASSWORD, ...) is taken from
# it; the others are made. Those who run it again after they changed a password get the URLs that go with it.
set -eu
umask 077
folder=${1:-secrets}
mkdir -p "$folder"
# The folder lets in its owner alone. Files are mounted one by one, and read by the users of the containers.
chmod 700 "$folder"

put() {
    printf %s "$2" > "$folder/$1.new"
    chmod 444 "$folder/$1.new"
    mv -f "$folder/$1.new" "$folder/$1"
}

keep() {
    [ -e "$folder/$1" ] || put "$1" "${2:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}"
}

plain() {
    case $(cat "$folder/$1") in
    *[!A-Za-z0-9._~-]*) echo "$folder/$1 has characters that a URL cannot hold: use letters and digits" >&2 && exit 1 ;;
    esac
}

url() {
    plain "$3"
    put "$1" "postgresql://$2:$(cat "$folder/$3")@postgres:5432/troll"
}

keep database_owner_password "${TROLL_DATABASE_OWNER_PASSWORD:-}"
keep api_password "${TROLL_API_PASSWORD:-}"
keep worker_password "${TROLL_WORKER_PASSWORD:-}"
keep control_password "${TROLL_CONTROL_PASSWORD:-}"
keep operator_password "${TROLL_OPERATOR_PASSWORD:-}"
keep redis_password "${TROLL_REDIS_PASSWORD:-}"
keep troll_key_pepper "${TROLL_KEY_PEPPER:-}"
keep troll_webhook_key "${TROLL_WEBHOOK_KEY:-}"

url database_owner_url postgres database_owner_password
url api_database_url troll_api api_password
url worker_database_url troll_worker worker_password
url control_database_url troll_control control_password
url operator_database_url troll_operator operator_password
plain redis_password
put redis_url "redis://:$(cat "$folder/redis_password")@redis:6379/0"
