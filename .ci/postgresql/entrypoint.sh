# As the official image's: POSTGRES_USER, POSTGRES_PASSWORD, PGDATA, and what lies in /docker-entrypoint-initdb.d.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf '%s' "$POSTGRES_PASSWORD" > /tmp/password
    initdb --username "$POSTGRES_USER" --pwfile /tmp/password --auth scram-sha-256 --auth-local trust
    rm /tmp/password
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    pg_ctl --wait -o "-c listen_addresses=" start
    createdb --username "$POSTGRES_USER" "$POSTGRES_USER"
    for file in /docker-entrypoint-initdb.d/*.sql; do psql --username "$POSTGRES_USER" --file "$file"; done
    pg_ctl --wait --mode fast stop
fi
exec postgres -c listen_addresses='*'
