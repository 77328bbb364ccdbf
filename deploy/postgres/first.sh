#!/bin/sh
# Makes the roles and the database, when a node begins. No standby is there yet: these commits do not wait for one.
set -eu
export PGOPTIONS='-c synchronous_commit=local'
psql --quiet --username=postgres --dbname=postgres --set=ON_ERROR_STOP=1 \
    --set=server="$(cat "/run/secrets/chargeonce-password")" \
    --set=replicator="$(cat "/run/secrets/replicator-password")" <<'SQL'
CREATE ROLE chargeonce LOGIN PASSWORD :'server';
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'replicator';
GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text),
    pg_read_binary_file(text, bigint, bigint, boolean) TO replicator; -- for pg_rewind
CREATE DATABASE chargeonce OWNER chargeonce;
SQL
