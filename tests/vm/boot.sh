#!/usr/bin/env bash
# Boots the machine of the Vagrantfile, checks emulation inside it (inside.py), and destroys it.
#
#   tests/vm/boot.sh [--demo]             with vagrant and the provider that it chooses
#   tests/vm/boot.sh [--demo] DRIVER      DRIVER PROJECT COMMAND boots a copy of the machine in its
#                                         own way, runs COMMAND there and passes on its exit status
#   --demo plays 'make demo' too. A machine that is up already is used and stays.
#   VAGRANT_DEFAULT_PROVIDER names the provider. Exits with 0 when every figure is within its bounds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

command='cd /vagrant && .venv/bin/python tests/vm/inside.py'
if [ "${1:-}" = --demo ]; then
    command+=' && make demo'
    shift
fi

say() { printf '%s +%ds %s\n' "$(date +%T)" "$SECONDS" "$*"; }

if [ $# -gt 0 ]; then
    say "$1"
    "$1" "$PWD" "$command"
    exit
fi

command -v vagrant >/dev/null || { echo "boot.sh: needs vagrant, or a driver" >&2; exit 2; }
state=$(vagrant status --machine-readable)
if ! grep -q ',state,running$' <<<"$state"; then
    trap 'vagrant destroy --force' EXIT
fi
say 'vagrant up'
vagrant up --provision
say 'provisioning once more, which must change nothing'
vagrant provision
say 'checks inside'
vagrant ssh -c "$command" -- -T
say done
