#!/usr/bin/env bash
# The Debian package, installed in a clean root and taken away again. Run as root, by `./test package`; what
# it needs is built before. Only apt uses the network; nothing is started.
#
#   scripts/package-test.sh             makes the package of target/release, twice, and tests it
#   scripts/package-test.sh FILE.deb    tests this one
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/bare-machine.sh
need_root

root=$(mktemp -d /tmp/enisle-package.XXXXXX)
cleanup() {
    umount "$root/proc" 2>/dev/null || true
    rm -rf --one-file-system "$root"
}
trap cleanup EXIT

failed=0
# Says what is shown, and whether it is so.
shows() {
    local what=$1
    shift
    if "$@"; then say "ok: $what"; else
        printf 'FAILED: %s\n' "$what" >&2
        failed=1
    fi
}
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C "$@"; }
sum() { sha256sum "$1" | cut -d' ' -f1; }
not() { ! "$@"; }

package=${1-}
if [ -z "$package" ]; then
    # One time for both: else that of the last commit, which a tree without git has not.
    export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}
    dist() { as_user env SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" cargo xtask dist --profile release --no-build; }
    package=$(umask 022 && dist | tail -n 1)
    first=$(sum "$package")
    sleep 1
    (umask 077 && dist >/dev/null)
    shows "packaged again by one whose files are private, the package is the same" test "$first" = "$(sum "$package")"
fi

say "a clean root"
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
# apt is asked whether it would install the package with all it depends on; they are not fetched.
cp "$package" /tmp/enisle-under-test.deb
# Not below /tmp, which mmdebstrap empties at its end.
mmdebstrap --quiet --variant=apt --include=passwd,libgcc-s1 \
    --customize-hook='copy-in /tmp/enisle-under-test.deb /mnt' \
    --customize-hook='chroot "$1" apt-get -s -qq install --no-install-recommends /mnt/enisle-under-test.deb >"$1/mnt/apt.log" 2>&1 || echo failed >>"$1/mnt/apt.log"' \
    "$suite" "$root"
rm -f /tmp/enisle-under-test.deb
shows "apt finds everything it depends on" grep -q '^Inst enisle ' "$root/mnt/apt.log"
shows "qemu-system-x86 among it" grep -q '^Inst qemu-system-x86 ' "$root/mnt/apt.log"
mount -t proc proc "$root/proc"

listing() { (cd "$root" && find . -xdev \( -path ./proc -o -path ./tmp -o -path ./mnt -o -path ./var/lib/dpkg -o -path ./var/log -o -path ./var/cache -o -path ./etc/group- -o -path ./etc/gshadow- \) -prune -o -print | sort); }
listing >"$root/tmp/before"
shows "it installs" inside dpkg --force-depends -i /mnt/enisle-under-test.deb
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
shows "enisle --version" test "$(inside enisle --version)" = "enisle $version"
shows "the schema is the program's" cmp -s "$root/usr/share/enisle/enisle.schema.json" <(inside enisle schema)
inside enisle completions bash >"$root/tmp/completions"
shows "the completions are the program's" cmp -s "$root/tmp/completions" "$root/usr/share/bash-completion/completions/enisle"
for file in usr/share/zsh/vendor-completions/_enisle usr/share/fish/vendor_completions.d/enisle.fish \
    usr/lib/systemd/system/enisle.service usr/share/doc/enisle/copyright usr/share/doc/enisle/third-party-licences.gz \
    usr/share/doc/enisle/examples/agents.yaml usr/share/doc/enisle/changelog.gz; do
    shows "$file" test -s "$root/$file"
done
for page in enisle enisle-up enisle-vm-new enisle-vm-port-forward; do
    shows "man $page" gzip -t "$root/usr/share/man/man1/$page.1.gz"
done
readelf -lW "$root/usr/lib/enisle/enisle-agent" >"$root/tmp/agent"
shows "the guest agent is static" not grep -q INTERP "$root/tmp/agent"
shows "the control: the program is not" grep -q INTERP <(readelf -lW "$root/usr/bin/enisle")
shows "the vsock device runs" inside /usr/lib/enisle/vhost-device-vsock --version
shows "every crate has a licence" not grep -q '^License: *$' "$root/usr/share/doc/enisle/copyright"
shows "files are as packaged" inside dpkg --verify enisle
shows "the group exists" grep -q '^enisle:' "$root/etc/group"
# There is no kernel module, QEMU or image in there: it must say so, not fall over.
inside enisle --json doctor --quick /etc/enisle/enisle.yaml >"$root/tmp/doctor.json" 2>&1 || true
shows "enisle doctor runs and misses QEMU" grep -q 'qemu' "$root/tmp/doctor.json"
shows "it has read the example" grep -q 'enisle.yaml' "$root/tmp/doctor.json"
shows "systemd takes the unit" systemd-analyze verify --root="$root" --man=no --recursive-errors=no \
    "$root/usr/lib/systemd/system/enisle.service"
shows "the unit's exposure is at most 6.0" systemd-analyze security --offline=true --threshold=60 --no-pager \
    "$root/usr/lib/systemd/system/enisle.service" >"$root/tmp/security"
tail -n 1 "$root/tmp/security"

echo '# mine' >>"$root/etc/enisle/enisle.yaml"
shows "it goes" inside dpkg --remove enisle
shows "a file that was changed stays until it is purged" grep -q '# mine' "$root/etc/enisle/enisle.yaml"
shows "it is purged" inside dpkg --purge enisle
listing >"$root/tmp/after"
# The group stays (and what groupadd keeps of the file before), as the operator's files in /var/lib/enisle would.
shows "nothing else is left" diff "$root/tmp/before" "$root/tmp/after"
exit $failed
