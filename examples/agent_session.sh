#!/bin/sh
# An agent's session: make a sandbox, copy a repository in, run its tests, fetch the result, delete.
#
#     agent_session.sh REPOSITORY COMMAND RESULT
#
# REPOSITORY is a directory; COMMAND is run by `sh` in the copy of it; RESULT is a file that COMMAND makes there, and
# comes back into the current directory. The daemon is at ENISLE_API, or unix:/run/enisle/api.sock.
set -eu
[ $# -eq 3 ] || { echo "usage: $0 REPOSITORY COMMAND RESULT" >&2; exit 2; }
place=/root/repository

vm=$(enisle vm new --wait --timeout 4m --ttl 1h --label example=agent-session)
trap 'enisle vm delete "$vm" >/dev/null' EXIT

enisle vm cp "$1" "$vm:$place"
status=0
enisle vm exec "$vm" -- sh -c "cd $place && $2" || status=$?
enisle vm cp "$vm:$place/$3" .
exit "$status"
