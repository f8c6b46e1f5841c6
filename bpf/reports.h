// SPDX-License-Identifier: Apache-2.0
/*
 * Refused packets, told one by one.
 *
 * Owns: what is told, and how much of it: each slot has a bucket of its own, and what it does not hold is
 * counted exactly. Only who refuses a packet comes here; an allowed one costs nothing.
 * Refuses: keeping order, and waiting for whoever reads: when the ring is full, a packet is counted as not told.
 */

/* Of one slot: so many at once, and so many a second after that. */
#define REPORTS_PER_SECOND 8
#define REPORT_EVERY (SECOND / REPORTS_PER_SECOND)
/* Room for the bursts of a thousand slots at once. */
#define REPORTS_BYTES (512u << 10)

/* One slot's. Several CPUs may write it at once: then a report more is told than the bucket holds, and none is
 * lost from the count. */
struct teller {
	u64 tenant; /* whose slot it is, by a number that is never used again */
	u64 next;   /* the bucket: all before this time is used */
	u64 untold; /* packets since the slot was given to its tenant */
};

/* Shared with crates/net/src/kernel/told.rs. */
struct report {
	u64 tenant, untold;
	u32 by, policy;
	be32 src, dst;
	be16 src_port, dst_port; /* of ICMP: type and code, one byte each, in the first */
	u8 proto, inward, has_ports, zero;
};

struct {
	__uint(type, MAP_HASH);
	__uint(map_flags, NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, u32);
	__type(value, struct teller);
} tellers SEC(".maps");

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, REPORTS_BYTES);
} told SEC(".maps");

INLINE int may_tell(struct teller *t)
{
	u64 now = bpf_ktime_get_ns();

	/* A full bucket holds no more than a second's. */
	if (t->next + SECOND < now)
		t->next = now - SECOND;
	if (t->next + REPORT_EVERY > now)
		return 0;
	t->next += REPORT_EVERY;
	return 1;
}

/* Ends of the packet as far as it has them. */
INLINE void describe(struct __sk_buff *skb, struct report *r)
{
	struct ipv4 ip;
	union transport t;
	u32 options;

	if (bpf_skb_load_bytes(skb, ETH_LEN, &ip, sizeof(ip)))
		return;
	r->src = ip.src;
	r->dst = ip.dst;
	r->proto = ip.proto;
	if (fragment_offset(&ip) || (ip.proto != TCP && ip.proto != UDP && ip.proto != ICMP))
		return;
	options = ((ip.version_ihl & 15) << 2) - IP_LEN;
	if (options > 40 || bpf_skb_load_bytes(skb, L4 + options, &t, sizeof(t)))
		return;
	r->has_ports = 1;
	r->src_port = t.src;
	r->dst_port = ip.proto == ICMP ? 0 : t.dst;
}

/* Tells of a refused packet, or counts it. */
static __attribute__((noinline)) int report(struct __sk_buff *skb, u32 slot, u32 by, u32 policy, u32 inward)
{
	struct teller *t = bpf_map_lookup_elem(&tellers, &slot);
	struct report r = { 0 };

	if (!t)
		return 0;
	if (may_tell(t)) {
		r.tenant = t->tenant;
		r.untold = t->untold;
		r.by = by;
		r.policy = policy;
		r.inward = inward;
		describe(skb, &r);
		if (!bpf_ringbuf_output(&told, &r, sizeof(r), 0))
			return 0;
	}
	__sync_fetch_and_add(&t->untold, 1);
	return 0;
}
