/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The judge of a VM on a bridge (part of judge.c): nobody speaks in another's name.
 *
 * Owns: `from_port`, at the tap's ingress, and `to_port`, at the ingress of the veth's end inside the VM's
 * namespace. Refuses: policy. Who may talk to whom on a bridge is not asked; every frame from the guest bears its own
 * MAC, and every IPv4 packet and ARP message its own address. IPv6 and all else is dropped: nothing checks who says it.
 */

INLINE int is_arp(const struct arp *arp)
{
	return arp->hardware == BE16(1) && arp->protocol == BE16(ETH_P_IP) && arp->hardware_len == 6 &&
	       arp->protocol_len == 4;
}

/* ARP from a guest on a bridge: any question or answer in its own name. The name server's is asked of the namespace. */
INLINE int arp_from_port(struct __sk_buff *skb, struct counters *c, const struct slot *slot, u32 id)
{
	struct arp arp;

	if (bpf_skb_load_bytes(skb, ETH_LEN, &arp, sizeof(arp)) || !is_arp(&arp) ||
	    !same_mac(arp.sender_mac, slot->guest_mac) || arp.sender != slot->guest)
		return count(skb, c, OUT_SPOOFED, TC_ACT_SHOT);
	if (arp.target == slot->gateway)
		return count(skb, c, OUT_ARP, TC_ACT_OK);
	count(skb, c, OUT_ALLOWED, 0);
	return leave(slot, id);
}

/* A packet for the name server: nothing else is there. */
INLINE int to_service(struct __sk_buff *skb, struct counters *c, const struct slot *slot, u32 id, const struct ipv4 *ip)
{
	union transport t = { 0 };
	int plain = ip->version_ihl == 0x45 && !is_fragment(ip) && (ip->proto == TCP || ip->proto == UDP);

	if (plain && bpf_skb_load_bytes(skb, L4, &t, sizeof(t)))
		return count(skb, c, OUT_MALFORMED, TC_ACT_SHOT);
	if (!plain || t.dst != BE16(PORT_DNS)) {
		refuse(skb, id, slot, BY_GATEWAY);
		return count(skb, c, OUT_REFUSED, TC_ACT_OK);
	}
	skb->mark = MARK_SERVICE;
	return count(skb, c, OUT_SERVICE, TC_ACT_OK);
}

SEC("classifier")
int from_port(struct __sk_buff *skb)
{
	u32 id = skb->ifindex & ID_MASK;
	struct counters *c = bpf_map_lookup_elem(&counters, &id);
	struct slot *slot = bpf_map_lookup_elem(&slots, &id);
	struct ethernet eth;
	struct ipv4 ip;

	if (!slot || bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) || skb->vlan_present ||
	    !same_mac(eth.src, slot->guest_mac))
		return count(skb, c, OUT_FRAME, TC_ACT_SHOT);
	if (eth.proto == BE16(ETH_P_ARP))
		return arp_from_port(skb, c, slot, id);
	if (eth.proto != BE16(ETH_P_IP))
		return count(skb, c, OUT_FRAME, TC_ACT_SHOT);
	if (bpf_skb_load_bytes(skb, ETH_LEN, &ip, sizeof(ip)) || (ip.version_ihl >> 4) != 4 ||
	    (ip.version_ihl & 15) < 5 || BE16(ip.length) < IP_LEN || BE16(ip.length) + ETH_LEN > skb->len)
		return count(skb, c, OUT_MALFORMED, TC_ACT_SHOT);
	if (ip.src != slot->guest)
		return count(skb, c, OUT_SPOOFED, TC_ACT_SHOT);
	if (ip.dst == slot->gateway)
		return to_service(skb, c, slot, id, &ip);
	/* What leaves the bridge is put together by the host. */
	if (is_fragment(&ip) && !fragment_fits(skb, id, &ip, slot->shaped))
		return count(skb, c, OUT_LIMITED, TC_ACT_OK);
	count(skb, c, OUT_ALLOWED, 0);
	return leave(slot, id);
}

SEC("classifier")
int to_port(struct __sk_buff *skb)
{
	u32 id = skb->ifindex & ID_MASK;
	struct counters *c = bpf_map_lookup_elem(&counters, &id);
	struct slot *slot = bpf_map_lookup_elem(&slots, &id);
	struct ethernet eth;
	struct ipv4 ip;

	if (!slot || bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) || skb->vlan_present)
		return count(skb, c, IN_UNSOLICITED, TC_ACT_SHOT);
	/* A bridge floods what it has not learned yet: that is not for this guest. */
	if (!(eth.dst[0] & 1) && !same_mac(eth.dst, slot->guest_mac))
		return count(skb, c, IN_UNSOLICITED, TC_ACT_SHOT);
	if (eth.proto != BE16(ETH_P_ARP)) {
		if (eth.proto != BE16(ETH_P_IP))
			return count(skb, c, IN_UNSOLICITED, TC_ACT_SHOT);
		if (bpf_skb_load_bytes(skb, ETH_LEN, &ip, sizeof(ip)) || (ip.version_ihl >> 4) != 4)
			return count(skb, c, IN_MALFORMED, TC_ACT_SHOT);
		if (!(eth.dst[0] & 1) && ip.dst != slot->guest)
			return count(skb, c, IN_UNSOLICITED, TC_ACT_SHOT);
	}
	count(skb, c, IN_ALLOWED, 0);
	return bpf_redirect(TAP_INDEX | id, 0);
}
