# Sourced by ./test and ./quickstart: what a bare Debian or Ubuntu machine needs, and the builds.
# Installs distribution packages; never changes the network, the firewall or a sysctl.

BUILD_PACKAGES=(ca-certificates clang cpio gcc libc6-dev make pkg-config)
RUN_PACKAGES=(debian-archive-keyring dpkg-dev e2fsprogs kmod mmdebstrap qemu-system-x86 qemu-utils xz-utils zstd)
TEST_PACKAGES=(bc bpftool curl iproute2 iptables iputils-ping nftables openssh-client procps sqlite3 systemd tcpdump ufw util-linux
    # What firewalld and NetworkManager need; not they, whose installation starts them: see need_unpacked.
    dbus-daemon gir1.2-glib-2.0 python3-dbus python3-gi python3-nftables
    # The client that is written from the documents alone: tests-vm/conformance.
    python3-websocket python3-venv)

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$1" >&2
    [ -z "${2-}" ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" -eq 0 ] || die "this makes network namespaces and virtual machines, and needs root" "sudo $0"
}

# Runs a command as the user who called sudo, so that nothing in their clone becomes root's.
as_user() {
    if [ -n "${SUDO_USER-}" ] && [ "$SUDO_USER" != root ]; then
        sudo -u "$SUDO_USER" -H env PATH="$PATH" "$@"
    else
        "$@"
    fi
}

# What root's cargo has written below target/ becomes theirs again.
give_back() {
    if [ -n "${SUDO_USER-}" ] && [ "$SUDO_USER" != root ] && [ -d target ]; then
        chown -Rh --from=root "$SUDO_USER:" target
    fi
}

# Names those of the packages that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        case $package in
        # Ubuntu has them in packages of other names: the program counts.
        bpftool | dbus-daemon) ! command -v "$package" >/dev/null || continue ;;
        esac
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -q '^installed$' || echo "$package"
    done
}

# Installs what is missing. More than one round, because apt may take a package away that was there:
# the distribution's qemu-system-x86 replaces a qemu-utils of another release.
need_packages() {
    local missing round
    for round in 1 2 3; do
        mapfile -t missing < <(missing_packages "$@")
        [ ${#missing[@]} -gt 0 ] || return 0
        command -v apt-get >/dev/null || die "missing: ${missing[*]}" "this script installs packages with apt-get, which is not here"
        say "installing ${missing[*]}"
        [ "$round" -gt 1 ] || apt-get update -qq
        install_packages "${missing[@]}"
    done
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -eq 0 ] ||
        die "apt-get does not install: ${missing[*]}" "sudo apt-get install ${missing[*]}   says why"
}

install_packages() {
    local package available=()
    for package in "$@"; do
        if [ -n "$(apt-cache policy "$package" 2>/dev/null | sed -n 's/ *Candidate: *\([^(].*\)/\1/p')" ]; then
            available+=("$package")
        elif [ "$package" = bpftool ]; then
            available+=(linux-tools-common)
        elif [ "$package" = dbus-daemon ]; then
            available+=(dbus)
        else
            die "the package $package is not to be had here" "enable the distribution's main and universe sections"
        fi
    done
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${available[@]}" >/dev/null
}

rust_version() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }

# A cargo of at least the workspace's rust-version: on PATH, of the user who called sudo, or the
# distribution's where that is new enough.
need_rust() {
    local home want have candidate
    want=$(rust_version)
    home=$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)
    PATH="$PATH:$home/.cargo/bin:/root/.cargo/bin"
    # For root's cargo, which may be rustup's of that user.
    if [ -z "${RUSTUP_HOME-}" ] && [ -d "$home/.rustup" ]; then export RUSTUP_HOME="$home/.rustup"; fi
    have=$(as_user cargo --version 2>/dev/null | awk '{print $2}') || true
    if [ -n "$have" ] && dpkg --compare-versions "$have" ge "$want"; then return 0; fi
    candidate=$(apt-cache policy cargo 2>/dev/null | awk '/Candidate:/ {print $2}')
    if [ -n "$candidate" ] && dpkg --compare-versions "$candidate" ge "$want"; then
        need_packages cargo rustc
        return 0
    fi
    die "Rust $want or newer is needed to build Enisle, found ${have:-none}" "https://rustup.rs installs it: sh rustup-init -y, then run this again"
}

# The binary, the guest's static agent, the lab, and the vsock device, all below target/.
build_release() {
    say "building Enisle (the first time takes some minutes)"
    as_user cargo build --release --locked -p enisle -p enisle-testkit
    say "building the guest agent"
    as_user env RUSTFLAGS='-C target-feature=+crt-static' \
        cargo build --release --locked -p enisle-agent --target x86_64-unknown-linux-gnu
    as_user ln -sf ../x86_64-unknown-linux-gnu/release/enisle-agent target/release/enisle-agent
    if [ ! -x target/tools/bin/vhost-device-vsock ]; then
        say "building vhost-device-vsock, the guests' way to the daemon"
        as_user cargo install --locked --root target/tools --target-dir target/tools/build vhost-device-vsock --version 0.3.0
        rm -rf target/tools/build
    fi
    as_user ln -sf ../tools/bin/vhost-device-vsock target/release/vhost-device-vsock
}

# Kept outside the clone: it takes minutes to build and never changes. Not optimised, which halves
# them; it runs for a second.
need_cargo_deny() {
    local version=0.20.2 root=/var/cache/enisle-test
    PATH="$root/bin:$PATH"
    [ "$(cargo-deny --version 2>/dev/null)" = "cargo-deny $version" ] && return 0
    say "building cargo-deny (once on this machine)"
    cargo install --locked --debug --root "$root" cargo-deny --version "$version"
}

# As cargo-deny, and for `./test --long` only.
need_cargo_fuzz() {
    local version=0.13.2 root=/var/cache/enisle-test
    PATH="$root/bin:$PATH"
    [ "$(cargo-fuzz --version 2>/dev/null)" = "cargo-fuzz $version" ] && return 0
    need_packages g++
    say "building cargo-fuzz (once on this machine)"
    cargo install --locked --debug --root "$root" cargo-fuzz --version "$version"
}

# Lets libFuzzer search for this many seconds in each target. Without a sanitizer, which a stable
# toolchain does not offer: the crates that parse have no unsafe code.
fuzz_all() {
    local target seconds=$1
    cargo fuzz build --sanitizer none --features libfuzzer || return
    for target in $(cargo fuzz list); do
        mkdir -p "fuzz/corpus/$target"
        cargo fuzz run --sanitizer none --features libfuzzer "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
            -max_total_time="$seconds" -max_len=16384 -print_final_stats=1 || return
    done
}

# For their tests: unpacked and not installed, because installing them would start them, and let them
# firewall or configure the machine.
need_unpacked_firewalld() { need_unpacked firewalld sbin/firewalld firewalld python3-firewall; }
need_unpacked_network_manager() { need_unpacked network-manager sbin/NetworkManager network-manager; }
# The checker of what `/metrics` says; of its package nothing else is wanted.
need_unpacked_promtool() {
    need_unpacked prometheus bin/promtool prometheus || return
    as_user rm -rf target/tools/prometheus/usr/bin/prometheus target/tools/prometheus/usr/share
}

# What makes up malformed requests from the OpenAPI document, with everything it needs, at fixed versions.
need_schemathesis() {
    local root=target/tools/schemathesis wanted=tests-vm/conformance/requirements.txt
    cmp -s "$root/installed.txt" "$wanted" && return 0
    /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "schemathesis, at the versions of $wanted, needs Python 3.11 or newer" "the tests run on Debian 12 and 13 and on Ubuntu 24.04"
    say "installing schemathesis below target/"
    as_user rm -rf "$root"
    # Made under its own name: a virtual environment cannot be moved. Its mark comes last.
    as_user /usr/bin/python3 -m venv "$root" || die "no virtual environment in $root"
    as_user "$root/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted" ||
        die "pip does not install what $wanted names" "$root/bin/pip install --requirement $wanted   says why"
    as_user cp "$wanted" "$root/installed.txt"
}

# Packages, and the libraries that they need and the machine has not, in target/tools/NAME, where the
# program /usr/PROGRAM comes from them.
need_unpacked() {
    local name=$1 root=target/tools/$1 program=$2 dir package
    shift 2
    [ ! -x "$root/usr/$program" ] || return 0
    say "unpacking $name (it is not installed)"
    dir=$(as_user mktemp -d "/tmp/enisle-$name.XXXXXX") || return
    if ! download_packages "$dir" "$@" 2>/dev/null; then
        # Nothing was missing, so nothing brought apt's lists up to date.
        apt-get update -qq
        download_packages "$dir" "$@" ||
            die "apt-get does not download: $*" "enable the distribution's main and universe sections"
    fi
    as_user rm -rf "$root" "$root.new" && as_user mkdir -p "$root.new" || return
    for package in "$dir"/*.deb; do as_user dpkg-deb -x "$package" "$root.new" || return; done
    # Whole or not there.
    as_user mv "$root.new" "$root" || return
    rm -rf "$dir"
}

# Libraries that would come new to the machine if these packages were installed. Says so only.
missing_libraries() {
    apt-get -s -qq install --no-install-recommends "$@" | awk '$1 == "Inst" && $2 ~ /^lib/ && $3 ~ /^\(/ {print $2}'
}

# Packages' files, with those of the libraries they lack, into a directory. Without apt's own user,
# which would have to be let into it.
download_packages() {
    local dir=$1 libraries
    shift
    libraries=$(missing_libraries "$@") || return
    (cd "$dir" && as_user apt-get -qq -o APT::Sandbox::User=root download "$@" $libraries)
}

build_images() {
    local image
    for image in "$@"; do target/release/enisle image build "$image"; done
}
