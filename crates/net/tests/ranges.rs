//! Ranges that come and go while slots live, on the real kernel.

use enisle_net::plan::{Block, Range};
use enisle_net::policy::{PolicySpec, compile};
use enisle_net::{Engine, EngineConfig, Limits, NetError, Slot, SlotSpec};
use enisle_testkit::listing::Listing;
use enisle_testkit::probe::Kind;
use enisle_testkit::tap::{Ident, TapGuest};
use enisle_testkit::world::{ECHO, SERVER};
use enisle_testkit::{Netns, World};
use std::time::Duration;

const FIRST: &str = "169.254.100.0/29";
const SECOND: &str = "169.254.108.0/29";
/// Touches the first: their interfaces' numbers become one interval.
const TOUCHING: &str = "169.254.100.8/29";
const LIMIT: Duration = Duration::from_secs(10);

fn range(text: &str) -> Range {
    text.parse().unwrap()
}

fn create(engine: &Engine, block: Block) -> Result<Slot, NetError> {
    let policy = compile(&PolicySpec::default()).unwrap();
    engine.create(&SlotSpec {
        block,
        vm_name: "agents-1",
        mtu: 1500,
        policy: &policy,
        tap_owner: (0, 0),
        limits: Limits::default(),
    })
}

fn first_of(text: &str) -> Block {
    range(text).block(0).unwrap()
}

fn guest(slot: &Slot) -> TapGuest {
    let block = slot.block();
    let ident = Ident {
        mac: block.guest_mac().octets(),
        ip: block.guest(),
        gateway_mac: block.host_mac().octets(),
        gateway: block.gateway(),
    };
    TapGuest::new(slot.open_tap().unwrap(), ident).unwrap()
}

fn look(host: &Netns) -> Vec<String> {
    Listing::of_network(host).unwrap()
}

#[test]
fn slots_in_ranges_that_came_later_are_as_good_and_the_others_go_on() {
    let world = World::new().unwrap();
    let before = look(&world.host);
    let config = EngineConfig { scope: "5eed0077".parse().unwrap(), ranges: vec![range(FIRST)] };
    let engine = world.host.run(|| Engine::open(config)).unwrap();
    let slot = create(&engine, first_of(FIRST)).unwrap();
    let reaches = |slot: &Slot| guest(slot).ask(Kind::Tcp, SERVER, ECHO, LIMIT).reached();
    assert!(reaches(&slot));
    assert!(matches!(create(&engine, first_of(SECOND)), Err(NetError::ForeignBlock(_))));

    engine.set_ranges(&[range(FIRST), range(SECOND)]).unwrap();
    let second = create(&engine, first_of(SECOND)).unwrap();
    assert!(reaches(&slot) && reaches(&second));
    engine.refresh().unwrap();
    let sibling = |from: &Slot, to: &Slot| guest(from).ask(Kind::Tcp, to.block().guest(), ECHO, LIMIT);
    assert!(sibling(&slot, &second).refused() && sibling(&second, &slot).refused());

    // Kept for as long as it has a slot, whatever is asked for.
    engine.set_ranges(&[range(SECOND), range(TOUCHING)]).unwrap();
    let third = create(&engine, first_of(TOUCHING)).unwrap();
    assert!(reaches(&slot) && reaches(&second) && reaches(&third));
    engine.remove(slot).unwrap();
    engine.set_ranges(&[range(SECOND), range(TOUCHING)]).unwrap();
    assert!(matches!(create(&engine, first_of(FIRST)), Err(NetError::ForeignBlock(_))));
    assert!(reaches(&second) && reaches(&third));

    let wrong = engine.set_ranges(&[range(SECOND), range("169.254.108.0/28")]).unwrap_err();
    assert!(matches!(wrong, NetError::RangesOverlap(..)), "{wrong}");
    world.host.check("ip", &["addr", "add", "10.200.0.1/24", "dev", "lo"], "").unwrap();
    let wrong = engine.set_ranges(&[range(SECOND), range(TOUCHING), range("10.200.0.0/24")]).unwrap_err();
    assert!(matches!(wrong, NetError::RangeInUse { .. }), "{wrong}");
    world.host.check("ip", &["addr", "del", "10.200.0.1/24", "dev", "lo"], "").unwrap();
    assert!(reaches(&second) && reaches(&third), "a refusal changes nothing");

    // What was let go can be had by another daemon.
    let config = EngineConfig { scope: "5eed0078".parse().unwrap(), ranges: vec![range(FIRST)] };
    let other = world.host.run(|| Engine::open(config)).unwrap();
    let wrong = engine.set_ranges(&[range(FIRST), range(SECOND), range(TOUCHING)]).unwrap_err();
    assert!(matches!(wrong, NetError::RangeLeased { .. }), "{wrong}");
    other.close().unwrap();
    drop(other);
    engine.remove(second).unwrap();
    engine.remove(third).unwrap();
    engine.close().unwrap();
    assert_eq!(look(&world.host), before);
}
