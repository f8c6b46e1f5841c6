/*
 * The guest of the VMM tests: a static PID 1 that does one thing, named on the kernel command
 * line as `vmmtest=WORD`. It is appended to the real initramfs, whose modules it loads.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/if_packet.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

static const char *wanted;

/* Loads the module file whose base name is `wanted`, wherever the initramfs keeps it. */
static int load_if_wanted(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	if (type != FTW_F || strcmp(path + ftw->base, wanted) != 0)
		return 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
		printf("vmmtest: %s: %s\n", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return 1;
}

static void load(const char *name)
{
	wanted = name;
	nftw("/lib", load_if_wanted, 8, FTW_PHYS);
	nftw("/usr/lib", load_if_wanted, 8, FTW_PHYS);
}

static void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

/* The count of interrupts of the device that carries the ACPI power button. */
static int button_interrupts(void)
{
	char line[512];
	int count = -1;
	FILE *table = fopen("/proc/interrupts", "r");
	while (table && fgets(line, sizeof line, table))
		if (strstr(line, "ACPI:Ged"))
			count = atoi(strchr(line, ':') + 1);
	if (table)
		fclose(table);
	return count;
}

/* Waits for the power button by its interrupt: that needs no driver for the button. */
static void wait_for_button(void)
{
	int before = button_interrupts();
	printf("vmmtest: button %s\n", before < 0 ? "missing" : "armed");
	while (button_interrupts() == before)
		usleep(20000);
	printf("vmmtest: button pressed\n");
	power_off();
}

/* Listens on vsock port 1024 and sends back what comes. */
static void echo_vsock(void)
{
	static char buffer[16384];
	struct sockaddr_vm here = { .svm_family = AF_VSOCK, .svm_port = 1024, .svm_cid = VMADDR_CID_ANY };
	struct sockaddr_vm host = { .svm_family = AF_VSOCK, .svm_port = 1024, .svm_cid = VMADDR_CID_HOST };
	load("vsock.ko");
	load("vmw_vsock_virtio_transport_common.ko");
	load("vmw_vsock_virtio_transport.ko");
	int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (listener < 0 || bind(listener, (void *)&here, sizeof here) || listen(listener, 8))
		printf("vmmtest: vsock: %s\n", strerror(errno));
	int up = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (connect(up, (void *)&host, sizeof host) == 0)
		dprintf(up, "hello from the guest\n");
	else
		printf("vmmtest: connect: %s\n", strerror(errno));
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		ssize_t got;
		while ((got = read(fd, buffer, sizeof buffer)) > 0)
			if (write(fd, buffer, got) != got)
				break;
		close(fd);
	}
}

/* Prints the first line of each disk and writes to those that allow it. */
static void show_disks(void)
{
	for (char letter = 'a'; letter <= 'd'; letter++) {
		char path[16], sector[512] = "";
		snprintf(path, sizeof path, "/dev/vd%c", letter);
		int fd = open(path, O_RDWR | O_DIRECT | O_SYNC);
		int writable = fd >= 0;
		if (fd < 0)
			fd = open(path, O_RDONLY);
		if (fd < 0)
			continue;
		void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (pread(fd, page, 512, 0) == 512)
			memcpy(sector, page, 511);
		sector[strcspn(sector, "\n")] = 0;
		memcpy(page, "written by the guest\n", 22);
		writable = writable && pwrite(fd, page, 512, 512) == 512;
		printf("vmmtest: vd%c %s [%s]\n", letter, writable ? "rw" : "ro", sector);
		close(fd);
	}
	power_off();
}

static void show(const char *label, const char *path)
{
	char text[64] = "";
	int fd = open(path, O_RDONLY);
	if (fd < 0 || read(fd, text, sizeof text - 1) < 0)
		strcpy(text, "missing");
	text[strcspn(text, "\n")] = 0;
	printf("vmmtest: %s %s\n", label, text);
}

/* Brings eth0 up and sends one recognisable frame. */
static void use_network(void)
{
	static const unsigned char frame[64] = "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5guest";
	struct ifreq request = { .ifr_name = "eth0" };
	struct sockaddr_ll to = { .sll_family = AF_PACKET };
	show("mac", "/sys/class/net/eth0/address");
	show("mtu", "/sys/class/net/eth0/mtu");
	int fd = socket(AF_PACKET, SOCK_RAW, 0);
	request.ifr_flags = IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request) || ioctl(fd, SIOCGIFINDEX, &request))
		printf("vmmtest: eth0: %s\n", strerror(errno));
	to.sll_ifindex = request.ifr_ifindex;
	if (sendto(fd, frame, sizeof frame, 0, (void *)&to, sizeof to) < 0)
		printf("vmmtest: send: %s\n", strerror(errno));
	printf("vmmtest: sent\n");
}

/* Touches memory until something stops it. */
static void eat_memory(void)
{
	for (size_t eaten = 0;; eaten += 1 << 20) {
		char *piece = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (piece == MAP_FAILED)
			break;
		memset(piece, 0x5a, 1 << 20);
	}
	power_off();
}

int main(void)
{
	static const char *modules[] = { "virtio_ring.ko", "virtio.ko", "virtio_mmio.ko", "virtio_blk.ko",
		"failover.ko", "net_failover.ko", "virtio_net.ko", "af_packet.ko", "virtio-rng.ko" };
	static char line[4096];
	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("dev", "/dev", "devtmpfs", 0, "");
	mount("proc", "/proc", "proc", 0, "");
	mount("sys", "/sys", "sysfs", 0, "");
	int console = open("/dev/console", O_RDWR);
	for (int i = 0; i < 3; i++)
		dup2(console, i);
	setvbuf(stdout, NULL, _IONBF, 0);
	for (size_t i = 0; i < sizeof modules / sizeof *modules; i++)
		load(modules[i]);
	int fd = open("/proc/cmdline", O_RDONLY);
	if (fd < 0 || read(fd, line, sizeof line - 1) <= 0)
		printf("vmmtest: no command line\n");
	char *word = strstr(line, "vmmtest=");
	word = word ? word + strlen("vmmtest=") : "";
	word[strcspn(word, " \n")] = 0;
	printf("vmmtest: ready for %s\n", word);
	if (!strcmp(word, "off"))
		power_off();
	if (!strcmp(word, "reset"))
		reboot(RB_AUTOBOOT);
	if (!strcmp(word, "button"))
		wait_for_button();
	if (!strcmp(word, "vsock"))
		echo_vsock();
	if (!strcmp(word, "disks"))
		show_disks();
	if (!strcmp(word, "net"))
		use_network();
	if (!strcmp(word, "memory"))
		eat_memory();
	if (!strcmp(word, "panic"))
		return 1; /* PID 1 ending is a kernel panic */
	while (!strcmp(word, "flood"))
		printf("vmmtest: 0123456789012345678901234567890123456789012345678901234567890123456789\n");
	for (;;)
		pause();
}
