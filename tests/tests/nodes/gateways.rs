//! Two gateways, of which one dies, freezes, or gives its volume away, under a load that goes on over the other.

use std::net::SocketAddr;

use lunette_tests::processes::Part;
use lunette_tests::server::wait_gone;
use lunette_tests::{Lunette, command};

use super::{SOME, VOLUME, finish, load::Load, number};

const GATEWAYS: [&str; 2] = ["gateway1", "gateway2"];

fn start() -> Lunette {
    Lunette::build().gateways(2).volume(VOLUME, "64M").log("info").start()
}

fn load(lunette: &Lunette) -> Load {
    let portals: Vec<SocketAddr> = [1, 2].map(|number| lunette.gateway(number)).to_vec();
    let load = Load::over(portals, VOLUME, number("LUNETTE_TEST_SEED", 42));
    load.run(SOME);
    load.take_stall();
    load
}

fn owner(lunette: &Lunette) -> &'static str {
    let volume = lunette.json(["volume", "show", VOLUME]);
    let owner = volume["owner"].as_str().unwrap_or_default();
    GATEWAYS.into_iter().find(|name| *name == owner).unwrap_or_else(|| panic!("owned by {owner:?}"))
}

fn other(gateway: &str) -> &'static str {
    if gateway == GATEWAYS[0] { GATEWAYS[1] } else { GATEWAYS[0] }
}

fn until_owned(lunette: &Lunette, load: &Load, gateway: &str) {
    lunette.until("taken over", |lunette| {
        load.check();
        owner(lunette) == gateway
    });
}

fn until_healthy(lunette: &Lunette, load: &Load) {
    lunette.until("healthy", |lunette| {
        load.check();
        lunette.health() == "health: healthy"
    });
}

#[test]
fn the_owner_is_killed() {
    // Guards against a volume that goes away with its gateway, and against what was acknowledged there and is gone.
    let lunette = start();
    let load = load(&lunette);
    // Dropped, they are killed.
    let mut parts: Vec<Part> = Vec::new();
    for _ in 0..number("LUNETTE_TEST_KILLS", 3) {
        let dead = owner(&lunette);
        lunette.kill_part(dead);
        until_owned(&lunette, &load, other(dead));
        load.run(SOME);
        println!("without a path for {:?} after the death of {dead}", load.take_stall());
        parts.push(lunette.start_part(dead));
        until_healthy(&lunette, &load);
        load.run(SOME);
        load.take_stall();
    }
    finish(lunette, load);
}

#[test]
fn a_frozen_owner_harms_nobody_when_it_goes_on() {
    // Guards against reads and writes of an owner that does not know yet that it is none any more.
    let lunette = start();
    let load = load(&lunette);
    for _ in 0..2 {
        let frozen = owner(&lunette);
        let pid = lunette.pid_of(frozen);
        command::freeze(pid);
        until_owned(&lunette, &load, other(frozen));
        load.run(SOME);
        println!("without a path for {:?} after {frozen} froze", load.take_stall());
        command::thaw(pid);
        until_healthy(&lunette, &load);
        load.run(SOME * 2);
    }
    finish(lunette, load);
}

#[test]
fn a_volume_is_moved_by_command() {
    // Guards against a move that loses what was on its way, or stops the load.
    let lunette = start();
    let load = load(&lunette);
    for _ in 0..number("LUNETTE_TEST_MOVES", 6) {
        let to = other(owner(&lunette));
        let moved = lunette.cli(["volume", "own", VOLUME, "--gateway", to]);
        assert!(moved.ok(), "{moved}");
        assert_eq!(owner(&lunette), to);
        load.run(SOME);
        println!("without a path for {:?} by a move", load.take_stall());
    }
    let refused = lunette.cli(["volume", "own", VOLUME, "--gateway", "gateway9"]);
    assert!(!refused.ok() && refused.stderr.contains("gateway9"), "{refused}");
    finish(lunette, load);
}

#[test]
fn a_gateway_that_is_stopped_hands_over() {
    // Guards against a stop that costs as much as a death, and against a volume that nobody has when the last one stops.
    let lunette = start();
    let load = load(&lunette);
    let mut parts: Vec<Part> = Vec::new();
    for _ in 0..2 {
        let stopped = owner(&lunette);
        let pid = lunette.pid_of(stopped);
        command::terminate(pid);
        wait_gone(pid);
        // It was done before the process ended.
        assert_eq!(owner(&lunette), other(stopped));
        load.run(SOME);
        println!("without a path for {:?} after {stopped} was stopped", load.take_stall());
        parts.push(lunette.start_part(stopped));
        until_healthy(&lunette, &load);
        load.run(SOME);
        load.take_stall();
    }
    finish(lunette, load);
}
