// SPDX-License-Identifier: Apache-2.0
/*
 * The judge: which frames may cross between one guest and the rest of the world.
 *
 * Owns: every verdict of docs/networking.md that one packet alone can decide. `from_guest` runs
 * at the tap's ingress, `to_guest` at the ingress of the veth's end inside the VM's namespace.
 * Refuses: flow state and NAT; the host's table has those.
 *
 * A frame leaves by one of three doors:
 *   redirect  judged and allowed;
 *   TC_ACT_OK left to the namespace's own stack, where a constant nft chain answers with a reset
 *             or admin-prohibited (or where ARP for the gateway is answered);
 *   TC_ACT_SHOT dropped, silently, and counted.
 * What no slot, no policy or no entry is known for is never redirected.
 *
 * Self-contained on purpose (`reports.h`, `fragments.h` and `port.h` are parts of it): the few structures used here are kernel ABI and never change, and
 * the build needs no kernel header.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u16 be16;
typedef u32 be32;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BE16(x) __builtin_bswap16(x)
#else
#define BE16(x) (x)
#endif

/* include/uapi/linux/bpf.h: struct __sk_buff, as far as it is read here. */
struct __sk_buff {
	u32 len, pkt_type, mark, queue_mapping, protocol;
	u32 vlan_present, vlan_tci, vlan_proto, priority;
	u32 ingress_ifindex, ifindex;
};

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static long (*bpf_redirect)(u32 ifindex, u64 flags) = (void *)23;
static long (*bpf_skb_load_bytes)(const void *skb, u32 off, void *to, u32 len) = (void *)26;
static long (*bpf_ringbuf_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;
static long (*bpf_redirect_peer)(u32 ifindex, u64 flags) = (void *)155;

enum { TC_ACT_OK = 0, TC_ACT_SHOT = 2 };
enum { MAP_HASH = 1, MAP_PERCPU_HASH = 5, MAP_LPM_TRIE = 11, MAP_RINGBUF = 27 };
enum { NO_PREALLOC = 1 };
enum { ONLY_NEW = 1 }; /* BPF_NOEXIST */
enum { ETH_P_IP = 0x0800, ETH_P_ARP = 0x0806 };
enum { ICMP = 1, TCP = 6, UDP = 17 };
enum { ICMP_ECHO_REPLY = 0, ICMP_UNREACHABLE = 3, ICMP_ECHO = 8, ICMP_TIME_EXCEEDED = 11, ICMP_PARAMETER = 12 };
enum { TCP_SYN = 0x02, TCP_ACK = 0x10 };
enum { ETH_LEN = 14, IP_LEN = 20, L4 = ETH_LEN + IP_LEN, INNER = L4 + 8 };

/* Shared with crates/net/src/judge.rs. */
#define ID_MASK 0x1fffffffu    /* 29 bits of an ifindex name the slot */
#define TAP_INDEX 0x40000000u  /* the tap in the VM's namespace */
#define PEER_INDEX 0x60000000u /* the veth's end in the VM's namespace */
/* On a packet for a service on the gateway. The namespace's tables read it. */
#define MARK_SERVICE 0x454e0001u
/* The one service. Whether anybody serves it is the daemon's business. */
#define PORT_DNS 53
/* ICMP errors a guest is given in one second, on each CPU. */
#define ICMP_ERRORS_PER_SECOND 100
#define SECOND 1000000000ull

enum counter {
	OUT_ALLOWED,
	OUT_REFUSED,   /* by policy, protocol or IP options: answered */
	OUT_SERVICE,   /* for a service on the gateway, left to the namespace */
	OUT_ARP,       /* a proper question for the gateway */
	OUT_FRAME,     /* dropped: MAC, VLAN tag, ethertype, IPv6 */
	OUT_SPOOFED,   /* dropped: forged source address, any other ARP */
	OUT_MALFORMED, /* dropped: lengths or headers that lie */
	IN_ALLOWED,
	IN_REFUSED,     /* dropped: the policy does not know this sender */
	IN_UNSOLICITED, /* dropped: not an answer, or not to this guest */
	IN_MALFORMED,
	IN_LIMITED, /* dropped: more ICMP errors than the limit */
	OUT_LIMITED, /* more fragments than the limit: answered */
	COUNTERS
};

struct slot {
	be32 guest, gateway;
	u32 policy;
	u8 guest_mac[6], gateway_mac[6];
	u32 shaped; /* what the guest sends goes through the qdisc of the veth's end */
};

/* Who refused a packet from the guest: a rule of the policy, or one of these. Shared with
 * crates/net/src/judge.rs. */
enum refuser {
	BY_FORM = 0xfffffff0u, /* row 8: protocol, IP options, kind of ICMP */
	BY_MULTICAST,          /* row 7, by the frame's address */
	BY_GATEWAY,            /* row 11: no service */
	BY_HOST,               /* rows 3 to 5: the map of this host */
	BY_NOTHING,            /* no policy holds the address */
	BY_OTHERS,             /* rules beyond RULES_COUNTED */
	REFUSALS = 0xffffffffu /* not a refuser: the slot's own row */
};
/* Rules of one slot that get a count of their own, for each CPU. With the map's size it bounds
 * what a guest under a policy of 65,536 rules can take of the map that all slots share. */
#define RULES_COUNTED 256

/* Beside each other, so that counting both touches one cache line. */
struct tally {
	u64 packets, bytes; /* bytes of frames, as long as they are here: one of many segments counts once */
};

struct counters {
	struct tally of[COUNTERS];
	u64 second, errors; /* the limit's window; not for readers */
};

struct address_key {
	u32 prefixlen, policy;
	be32 address;
};

struct port_key {
	u32 prefixlen, policy, table;
	u8 proto, zero;
	be16 port;
};

struct verdict {
	u32 rule;
	u32 table; /* 0: no port decides */
	u8 allow, fragments;
	u8 opens; /* prefix length of the operator's `allow` that says so; else 0 */
	u8 zero;
};

struct refusal_key {
	u32 slot, rule;
};

/* In the slot's own row, REFUSALS: how many rows for rules this CPU has made, and the highest rule
 * among them, so that they are found again when the slot goes. */
struct refusals {
	u64 packets;
	u32 rows, highest;
};

struct host_key {
	u32 prefixlen;
	be32 address;
};

struct {
	__uint(type, MAP_HASH);
	__uint(map_flags, NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, u32);
	__type(value, struct slot);
} slots SEC(".maps");

struct {
	__uint(type, MAP_PERCPU_HASH);
	__uint(map_flags, NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, MAP_LPM_TRIE);
	__uint(map_flags, NO_PREALLOC);
	__uint(max_entries, 4194304);
	__type(key, struct address_key);
	__type(value, struct verdict);
} addresses SEC(".maps");

struct {
	__uint(type, MAP_LPM_TRIE);
	__uint(map_flags, NO_PREALLOC);
	__uint(max_entries, 4194304);
	__type(key, struct port_key);
	__type(value, struct verdict);
} ports SEC(".maps");

/*
 * What only this host knows: its own addresses, everybody's slots, on-link subnets. The value is the
 * prefix length an operator's `allow` needs to open the address: that of the subnet, or more than
 * 32 for never.
 */
struct {
	__uint(type, MAP_LPM_TRIE);
	__uint(map_flags, NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct host_key);
	__type(value, u32);
} hosts SEC(".maps");

struct {
	__uint(type, MAP_PERCPU_HASH);
	__uint(map_flags, NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct refusal_key);
	__type(value, struct refusals);
} refusals SEC(".maps");

struct ethernet {
	u8 dst[6], src[6];
	be16 proto;
};

struct ipv4 {
	u8 version_ihl, tos;
	be16 length, id, fragment;
	u8 ttl, proto;
	be16 checksum;
	be32 src, dst;
};

struct arp {
	be16 hardware, protocol;
	u8 hardware_len, protocol_len;
	be16 operation;
	u8 sender_mac[6];
	be32 sender;
	u8 target_mac[6];
	be32 target;
} __attribute__((packed));

/* The first four bytes after the IPv4 header: ports, or ICMP type and code. */
union transport {
	struct {
		be16 src, dst;
	};
	struct {
		u8 type, code;
	};
};

INLINE int count(const struct __sk_buff *skb, struct counters *c, enum counter which, int action)
{
	if (c) {
		c->of[which].packets++;
		c->of[which].bytes += skb->len;
	}
	return action;
}

INLINE int same_mac(const u8 *a, const u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4] && a[5] == b[5];
}

INLINE int broadcast(const u8 *a)
{
	return (a[0] & a[1] & a[2] & a[3] & a[4] & a[5]) == 0xff;
}

/* A fragment's offset in units of eight bytes, without the flags. */
INLINE u32 fragment_offset(const struct ipv4 *ip)
{
	return BE16(ip->fragment) & 0x1fff;
}

INLINE u32 shortest(u8 proto)
{
	return proto == TCP ? 20 : 8;
}

/* A row of `refusals`, made where it is missing; nothing when the map is full. */
INLINE struct refusals *refusal_row(u32 slot, u32 rule)
{
	struct refusal_key key = { .slot = slot, .rule = rule };
	struct refusals zero = { 0 };
	struct refusals *row = bpf_map_lookup_elem(&refusals, &key);

	if (row)
		return row;
	/* Fails when another CPU was faster; its row will do. */
	bpf_map_update_elem(&refusals, &key, &zero, ONLY_NEW);
	return bpf_map_lookup_elem(&refusals, &key);
}

/* Counts a packet from the guest that is refused, also by what refused it. */
static __attribute__((noinline)) int refused(u32 slot, u32 rule)
{
	struct refusal_key key = { .slot = slot, .rule = rule };
	struct refusals *all = refusal_row(slot, REFUSALS);
	struct refusals *row;

	if (!all)
		return 0;
	all->packets++;
	row = bpf_map_lookup_elem(&refusals, &key);
	if (!row && rule < BY_FORM) {
		if (all->rows >= RULES_COUNTED) {
			rule = BY_OTHERS;
		} else {
			all->rows++;
			if (rule > all->highest)
				all->highest = rule;
		}
	}
	if (!row)
		row = refusal_row(slot, rule);
	if (row)
		row->packets++;
	return 0;
}

#include "reports.h"

/* Counts a packet from the guest that is refused, and tells of it. */
INLINE void refuse(struct __sk_buff *skb, u32 id, const struct slot *slot, u32 by)
{
	refused(id, by);
	report(skb, id, by, slot->policy, 0);
}

/* The policy's row for an address, or for one of its ports. */
INLINE struct verdict *policy_row(u32 policy, be32 address, u8 proto, u32 has_port, be16 far, u8 *allow)
{
	struct address_key key = { .prefixlen = 64, .policy = policy, .address = address };
	struct verdict *v = bpf_map_lookup_elem(&addresses, &key);

	if (!v)
		return 0;
	*allow = v->allow;
	if (!v->table || proto == ICMP)
		return v;
	if (!has_port) {
		*allow = v->fragments;
		return v;
	}
	struct port_key port = {
		.prefixlen = 96, .policy = policy, .table = v->table, .proto = proto, .port = far,
	};
	struct verdict *p = bpf_map_lookup_elem(&ports, &port);
	if (!p)
		return v;
	*allow = p->allow;
	return p;
}

/*
 * Whether the policy and the host let a guest talk to `address`. `far` is the port at that end;
 * absent from ICMP and from a fragment other than the first. `by` is told who says no.
 */
INLINE int allowed_but(u32 policy, be32 address, u8 proto, u32 has_port, be16 far, u32 *by)
{
	u8 allow = 0;
	struct verdict *v = policy_row(policy, address, proto, has_port, far, &allow);

	*by = v ? v->rule : BY_NOTHING;
	if (!v || !allow)
		return 0;
	struct host_key key = { .prefixlen = 32, .address = address };
	u32 *needed = bpf_map_lookup_elem(&hosts, &key);
	*by = BY_HOST;
	return !needed || v->opens >= *needed;
}

INLINE int allowed(u32 policy, be32 address, u8 proto, u32 has_port, be16 far)
{
	u32 by;

	return allowed_but(policy, address, proto, has_port, far, &by);
}

#include "fragments.h"

/* An allowed packet leaves: the short way, or through the queue that keeps it to its rate. */
INLINE int leave(const struct slot *slot, u32 id)
{
	if (slot->shaped)
		return bpf_redirect(PEER_INDEX | id, 0);
	return bpf_redirect_peer(PEER_INDEX | id, 0);
}

/* ARP from the guest: nothing but "who has the gateway? tell me", signed with its own name. */
INLINE int arp_from_guest(struct __sk_buff *skb, const struct ethernet *eth, const struct slot *slot)
{
	struct arp arp;

	if (bpf_skb_load_bytes(skb, ETH_LEN, &arp, sizeof(arp)))
		return 0;
	return (broadcast(eth->dst) || same_mac(eth->dst, slot->gateway_mac)) && arp.hardware == BE16(1) &&
	       arp.protocol == BE16(ETH_P_IP) && arp.hardware_len == 6 && arp.protocol_len == 4 &&
	       arp.operation == BE16(1) && same_mac(arp.sender_mac, slot->guest_mac) && arp.sender == slot->guest &&
	       arp.target == slot->gateway;
}

/* Whether the IPv4 header and what follows it are as long as they say. Options are looked at before. */
INLINE int lengths_hold(struct __sk_buff *skb, const struct ipv4 *ip)
{
	u32 length = BE16(ip->length);
	u32 needed = IP_LEN + (fragment_offset(ip) ? 1 : shortest(ip->proto));

	return length >= needed && length + ETH_LEN <= skb->len;
}

SEC("classifier")
int from_guest(struct __sk_buff *skb)
{
	u32 id = skb->ifindex & ID_MASK;
	struct counters *c = bpf_map_lookup_elem(&counters, &id);
	struct slot *slot = bpf_map_lookup_elem(&slots, &id);
	struct ethernet eth;
	struct ipv4 ip;

	if (!slot)
		return count(skb, c, OUT_FRAME, TC_ACT_SHOT);
	/* The kernel has taken a VLAN tag off already; only vlan_present tells. */
	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) || skb->vlan_present ||
	    !same_mac(eth.src, slot->guest_mac))
		return count(skb, c, OUT_FRAME, TC_ACT_SHOT);
	if (eth.proto == BE16(ETH_P_ARP)) {
		if (!arp_from_guest(skb, &eth, slot))
			return count(skb, c, OUT_SPOOFED, TC_ACT_SHOT);
		return count(skb, c, OUT_ARP, TC_ACT_OK);
	}
	if (eth.proto != BE16(ETH_P_IP))
		return count(skb, c, OUT_FRAME, TC_ACT_SHOT);
	if (bpf_skb_load_bytes(skb, ETH_LEN, &ip, sizeof(ip)))
		return count(skb, c, OUT_MALFORMED, TC_ACT_SHOT);
	if (ip.src != slot->guest)
		return count(skb, c, OUT_SPOOFED, TC_ACT_SHOT);
	if (!same_mac(eth.dst, slot->gateway_mac)) {
		/* Multicast and broadcast are refused like any address of row 7, but RFC 1122 3.2.2
		 * forbids to answer them. */
		if (eth.dst[0] & 1) {
			refuse(skb, id, slot, BY_MULTICAST);
			return count(skb, c, OUT_REFUSED, TC_ACT_SHOT);
		}
		return count(skb, c, OUT_FRAME, TC_ACT_SHOT);
	}
	if ((ip.version_ihl >> 4) != 4 || (ip.version_ihl & 15) < 5)
		return count(skb, c, OUT_MALFORMED, TC_ACT_SHOT);
	if ((ip.version_ihl & 15) > 5 || (ip.proto != TCP && ip.proto != UDP && ip.proto != ICMP)) {
		refuse(skb, id, slot, BY_FORM);
		return count(skb, c, OUT_REFUSED, TC_ACT_OK);
	}
	if (!lengths_hold(skb, &ip))
		return count(skb, c, OUT_MALFORMED, TC_ACT_SHOT);

	union transport t = { 0 };
	u32 first = !fragment_offset(&ip);
	if (first && bpf_skb_load_bytes(skb, L4, &t, sizeof(t)))
		return count(skb, c, OUT_MALFORMED, TC_ACT_SHOT);
	/* A guest may ask, and complain about what it got. It is no router and no time server. */
	if (ip.proto == ICMP && first && t.type != ICMP_ECHO && t.type != ICMP_UNREACHABLE &&
	    t.type != ICMP_TIME_EXCEEDED && t.type != ICMP_PARAMETER) {
		refuse(skb, id, slot, BY_FORM);
		return count(skb, c, OUT_REFUSED, TC_ACT_OK);
	}

	if (ip.dst == slot->gateway) {
		if (ip.proto == ICMP || !first || t.dst != BE16(PORT_DNS)) {
			refuse(skb, id, slot, BY_GATEWAY);
			return count(skb, c, OUT_REFUSED, TC_ACT_OK);
		}
		skb->mark = MARK_SERVICE;
		return count(skb, c, OUT_SERVICE, TC_ACT_OK);
	}
	u32 by;
	if (!allowed_but(slot->policy, ip.dst, ip.proto, first, t.dst, &by)) {
		refuse(skb, id, slot, by);
		return count(skb, c, OUT_REFUSED, TC_ACT_OK);
	}
	if (is_fragment(&ip) && !fragment_fits(skb, id, &ip, slot->shaped))
		return count(skb, c, OUT_LIMITED, TC_ACT_OK);
	count(skb, c, OUT_ALLOWED, 0);
	return leave(slot, id);
}

/*
 * An ICMP error: whoever sends it, it must be about a packet this guest sent to where it may send.
 * The quoted packet carries no options, since a guest's packets with options never leave.
 */
INLINE enum counter icmp_error(struct __sk_buff *skb, struct counters *c, const struct slot *slot)
{
	struct ipv4 ip;
	union transport t = { 0 };
	u32 first;

	if (bpf_skb_load_bytes(skb, INNER, &ip, sizeof(ip)) || ip.version_ihl != 0x45)
		return IN_MALFORMED;
	if (ip.src != slot->guest || (ip.proto != TCP && ip.proto != UDP && ip.proto != ICMP))
		return IN_UNSOLICITED;
	first = !fragment_offset(&ip);
	if (first && bpf_skb_load_bytes(skb, INNER + IP_LEN, &t, sizeof(t)))
		return IN_MALFORMED;
	if (!allowed(slot->policy, ip.dst, ip.proto, first, t.dst))
		return IN_REFUSED;

	u64 second = bpf_ktime_get_ns() / SECOND;
	if (!c)
		return IN_LIMITED;
	if (c->second != second) {
		c->second = second;
		c->errors = 0;
	}
	if (c->errors >= ICMP_ERRORS_PER_SECOND)
		return IN_LIMITED;
	c->errors++;
	return IN_ALLOWED;
}

/* A packet addressed to the guest, long enough for its headers: is it the answer to what it may ask? */
INLINE enum counter answer(struct __sk_buff *skb, struct counters *c, const struct slot *slot, const struct ipv4 *ip)
{
	union transport t = { 0 };
	u32 by, first = !fragment_offset(ip);
	u8 flags = 0;

	if (first) {
		if (bpf_skb_load_bytes(skb, L4, &t, sizeof(t)))
			return IN_MALFORMED;
		if (ip->proto == ICMP) {
			if (t.type == ICMP_UNREACHABLE || t.type == ICMP_TIME_EXCEEDED || t.type == ICMP_PARAMETER)
				return icmp_error(skb, c, slot);
			if (t.type != ICMP_ECHO_REPLY)
				return IN_UNSOLICITED;
		}
		if (ip->proto == TCP) {
			if (bpf_skb_load_bytes(skb, L4 + 13, &flags, sizeof(flags)))
				return IN_MALFORMED;
			/* A guest is never called. */
			if ((flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
				return IN_UNSOLICITED;
		}
	}
	if (!allowed_but(slot->policy, ip->src, ip->proto, first, t.src, &by)) {
		report(skb, skb->ifindex & ID_MASK, by, slot->policy, 1);
		return IN_REFUSED;
	}
	return IN_ALLOWED;
}

SEC("classifier")
int to_guest(struct __sk_buff *skb)
{
	u32 id = skb->ifindex & ID_MASK;
	struct counters *c = bpf_map_lookup_elem(&counters, &id);
	struct slot *slot = bpf_map_lookup_elem(&slots, &id);
	struct ethernet eth;
	struct ipv4 ip;
	enum counter verdict;

	if (!slot)
		return count(skb, c, IN_UNSOLICITED, TC_ACT_SHOT);
	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) || skb->vlan_present || eth.proto != BE16(ETH_P_IP))
		return count(skb, c, IN_UNSOLICITED, TC_ACT_SHOT);
	if (bpf_skb_load_bytes(skb, ETH_LEN, &ip, sizeof(ip)) || ip.version_ihl != 0x45)
		return count(skb, c, IN_MALFORMED, TC_ACT_SHOT);
	if (ip.dst != slot->guest || (ip.proto != TCP && ip.proto != UDP && ip.proto != ICMP))
		return count(skb, c, IN_UNSOLICITED, TC_ACT_SHOT);
	if (!lengths_hold(skb, &ip))
		return count(skb, c, IN_MALFORMED, TC_ACT_SHOT);
	verdict = answer(skb, c, slot, &ip);
	if (verdict != IN_ALLOWED)
		return count(skb, c, verdict, TC_ACT_SHOT);
	count(skb, c, IN_ALLOWED, 0);
	return bpf_redirect(TAP_INDEX | id, 0);
}

#include "port.h"

/* No helper used here is reserved to GPL programs. */
char LICENSE[] SEC("license") = "Apache-2.0";
