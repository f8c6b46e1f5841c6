#!/bin/sh
# An agent's session: make a sandbox, copy a repository in, run its tests, fetch the result, delete.
#
#     agent_session.sh REPOSITORY COMMAND RESULT
#
# REPOSITORY is a directory; COMMAND is run by `sh` in the copy of it; RESULT is a file that COMMAND makes there, and
# comes back into the current directory. The daemon is at ENISLE_API, or unix:/run/enisle/api.sock;
# where it has several groups, ENISLE_GROUP names one.
set -eu
[ $# -eq 3 ] || { echo "usage: $0 REPOSITORY COMMAND RESULT" >&2; exit 2; }
place=/root/repository

vm=$(enisle vm new ${ENISLE_GROUP:+"$ENISLE_GROUP"} --wait --timeout 4m --ttl 1h --label example=agent-session)
trap 'enisle vm delete "$vm" >/dev/null' EXIT
# dash, which is sh here and there, ends by a signal without what stands above.
trap 'exit 130' INT
trap 'exit 143' TERM HUP

enisle vm cp -- "$(realpath -- "$1")" "$vm:$place"
status=0
enisle vm exec --cwd "$place" "$vm" -- sh -c "$2" || status=$?
# A command that failed may have made no result; how it ended is what counts then.
enisle vm cp -- "$vm:$place/$3" . || [ "$status" -ne 0 ] || status=1
exit "$status"
