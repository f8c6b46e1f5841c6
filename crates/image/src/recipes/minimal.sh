# Makes the minimal image in the empty directory $1: busybox and no init.
set -eu
root=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -q download busybox-static >/dev/null
dpkg-deb -x busybox-static_*.deb busybox

cd "$root"
mkdir -p bin dev etc home/ubuntu mnt proc root run sbin sys tmp usr/bin usr/sbin var/lib var/log
chmod 1777 tmp
chmod 0700 root
find "$work/busybox" -name busybox -type f -perm -100 -exec cp {} bin/busybox \; -quit
for applet in $(bin/busybox --list); do
    case $applet in
    init | linuxrc | busybox | getty | login) ;;
    *) ln -sf busybox "bin/$applet" ;;
    esac
done
printf 'root:x:0:0:root:/root:/bin/sh\nubuntu:x:1000:1000:ubuntu:/home/ubuntu:/bin/sh\n' >etc/passwd
printf 'root:x:0:\nubuntu:x:1000:\n' >etc/group
chown 1000:1000 home/ubuntu
