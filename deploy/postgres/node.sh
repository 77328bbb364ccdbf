#!/bin/sh
# Starts one of two PostgreSQL nodes: NODE is its name, OTHER the other's host. A node without data copies the other; only where
# the other does not answer, and BEGIN is yes, does it begin a database. So a node that lost its disk begins no second journal
# beside the other.
set -eu
umask 077
cp /tls/tls.key /run/postgresql/tls.key
printf '*:*:*:replicator:%s\n' "$(cat /run/secrets/replicator-password)" > /run/postgresql/pgpass

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    if pg_isready --quiet --host="$OTHER"; then
        other="host=$OTHER user=replicator sslmode=verify-full sslrootcert=/tls/ca.crt passfile=/run/postgresql/pgpass"
        psql --quiet --no-align --tuples-only --dbname="$other dbname=postgres" --command="
            SELECT pg_create_physical_replication_slot('$NODE')
            WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '$NODE')"
        pg_basebackup --pgdata="$PGDATA" --write-recovery-conf --checkpoint=fast --slot="$NODE" --dbname="$other"
    elif [ "${BEGIN:-no}" != yes ]; then
        echo "$NODE has no data, and $OTHER does not answer" >&2
        exit 1
    fi
fi
exec docker-entrypoint.sh postgres -c config_file=/etc/postgresql/postgresql.conf -c cluster_name="$NODE"
