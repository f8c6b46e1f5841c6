// SPDX-License-Identifier: Apache-2.0
/*
 * Fragments from a guest. The host puts them together before its first rule sees them (defrag is
 * at priority -400 of prerouting, the guard at -300), in memory that the whole host shares
 * (`ipfrag_high_thresh`, 4 MiB): whoever fills it takes everybody's fragments away for 30 seconds.
 *
 * Owns: how much of that memory one slot can hold. A slot's debt is what its fragments may still
 * occupy. It is forgiven when the host has the datagram whole, which is known of fragments that
 * came in order; else after the time that the host waits for the rest.
 * Refuses: whether the packet may go where it goes.
 */

/* Bytes. Enough for a datagram of 64 KiB in frames of 1500; with what is forgiven meanwhile a slot
 * holds at most twice as much, a sixteenth of the host's memory. */
#define FRAGMENT_BYTES (128u << 10)
/* ipfrag_time of a host whose administrator has not changed it. */
#define FRAGMENT_LIFE (30 * SECOND)
#define FRAGMENT_NS_PER_BYTE (FRAGMENT_LIFE / FRAGMENT_BYTES)
/* What the kernel needs for a packet beside its bytes: sk_buff, shared info, rounding, the queue. */
#define FRAGMENT_OVERHEAD 1024u
/* Larger buffers are rounded up to the next power of two. */
#define FRAGMENT_ROUNDED 1600u
#define MORE_FRAGMENTS 0x2000
#define LARGEST_PACKET 65535u

/* One slot's. Several CPUs may write it at once: then one packet's debt is lost, never more. */
struct fragments {
	u64 opens;  /* no fragment before: the last tenant's may still wait for their rest */
	u64 strict; /* nothing is forgiven before: something is left of fragments out of order */
	u64 since;  /* debt was counted down to here */
	u32 debt;   /* bytes */
	u32 train;  /* bytes of debt of the datagram under way */
	u32 next;   /* where it goes on; 0: none is under way */
	be32 dst;
	be16 id;
	u8 proto, zero[5];
};

struct {
	__uint(type, MAP_HASH);
	__uint(map_flags, NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, u32);
	__type(value, struct fragments);
} fragments SEC(".maps");

INLINE int is_fragment(const struct ipv4 *ip)
{
	return (BE16(ip->fragment) & (MORE_FRAGMENTS | 0x1fff)) != 0;
}

INLINE void pay_off(struct fragments *f, u64 now)
{
	/* Another CPU may have counted further than this one's clock had come. */
	u64 bytes = now > f->since ? (now - f->since) / FRAGMENT_NS_PER_BYTE : 0;

	f->since += bytes * FRAGMENT_NS_PER_BYTE;
	f->debt = bytes < f->debt ? f->debt - (u32)bytes : 0;
}

/* The datagram under way gets its next fragment, or something is left behind. */
INLINE void follow(struct fragments *f, const struct ipv4 *ip, u32 cost, u64 now)
{
	u32 at = fragment_offset(ip) * 8, len = BE16(ip->length) - IP_LEN;
	u32 more = BE16(ip->fragment) & MORE_FRAGMENTS;
	u32 starts = !at, goes_on = f->next && at == f->next && f->dst == ip->dst && f->id == ip->id &&
				    f->proto == ip->proto;

	if (starts != !f->next || !(starts || goes_on) || (more && (len & 7)) || at + len + IP_LEN > LARGEST_PACKET) {
		f->strict = now + FRAGMENT_LIFE;
		f->next = 0;
		return;
	}
	if (starts) {
		f->dst = ip->dst;
		f->id = ip->id;
		f->proto = ip->proto;
		f->train = 0;
	}
	f->train += cost;
	f->next = at + len;
	if (more)
		return;
	f->next = 0;
	if (now >= f->strict)
		f->debt = f->train < f->debt ? f->debt - f->train : 0;
}

/*
 * Whether the host can take this fragment in. `lossy`: it may be lost on the way, so that the host
 * waits for it although it was let through.
 */
INLINE int fragment_fits(struct __sk_buff *skb, u32 slot, const struct ipv4 *ip, u32 lossy)
{
	struct fragments *f = bpf_map_lookup_elem(&fragments, &slot);
	u64 now = bpf_ktime_get_ns();
	u32 cost = skb->len + FRAGMENT_OVERHEAD;

	if (!f || now < f->opens)
		return 0;
	if (skb->len > FRAGMENT_ROUNDED)
		cost += skb->len;
	pay_off(f, now);
	if (f->debt + cost > FRAGMENT_BYTES) {
		/* What belongs to it waits in vain. */
		f->strict = now + FRAGMENT_LIFE;
		f->next = 0;
		return 0;
	}
	f->debt += cost;
	if (lossy)
		f->strict = now + FRAGMENT_LIFE;
	follow(f, ip, cost, now);
	return 1;
}
