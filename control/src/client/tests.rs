//! Addresses, and pauses between attempts.

use super::*;

/// Guards the addresses that are taken: with a port, plain HTTP, at least one.
#[tokio::test]
async fn addresses() {
    for good in ["127.0.0.1:7400", "http://127.0.0.1:7400", "[::1]:7400", "control.example:7400"] {
        assert!(connect(good).is_ok(), "{good}");
    }
    for bad in ["", "127.0.0.1", "127.0.0.1:0", "https://127.0.0.1:7400", "a b:1", "unix:///x"] {
        assert_eq!(connect(bad).err(), Some(AddressError { address: bad.into() }));
    }
    assert!(ControlPlane::new::<&str>([]).is_err());
}

/// Guards a control plane that is away for long: attempts become rare, and not rarer than that.
#[test]
fn pauses_grow() {
    let mut backoff = Backoff::default();
    let pauses: Vec<Duration> = (0..10).map(|_| backoff.next()).collect();
    assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
    assert_eq!((pauses[0], pauses[9]), (BACKOFF_MIN, BACKOFF_MAX));
}
