//! All sessions of a gateway, by identity: who holds one, and who waits for it.
//!
//! A session is named by initiator, ISID, target and portal group tag (RFC 7143 4.4.3.2). A login
//! that names one which is held reinstates it (RFC 7143 6.3.5): the holder is told to go, and the
//! newcomer's login is answered only when the holder has released it, which it does when the last
//! of its commands has come back from its device. So nothing old is written after the answer.
//!
//! A login that names a session's handle and its connection as well reinstates the connection (RFC 7143
//! 6.3.4). It waits in the same way, and then goes on with the session instead of beginning one.

use std::collections::{BTreeMap, VecDeque};

use lunette_proto::iscsi::codes::login;

/// A connection of this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// The identity of a session.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionKey {
    /// The initiator's name, in lower case.
    pub initiator: String,
    /// Its part of the session's id.
    pub isid: [u8; 6],
    /// The target's name, in lower case.
    pub target: String,
    /// The portal group's tag.
    pub tag: u16,
}

/// What a connection asks for at the end of its login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// `None` for discovery sessions, which reinstate nothing.
    pub key: Option<SessionKey>,
    /// The TSIH of the request: 0 for a new session.
    pub tsih: u16,
    /// The connection's id within the session.
    pub cid: u16,
}

/// The answer to a [`Claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The session is yours.
    Granted {
        /// Its handle, not 0.
        tsih: u16,
    },
    /// You will get a [`Grant`] once `holder`, who must go, has released it.
    Wait {
        /// Who holds it.
        holder: ConnectionId,
    },
    /// Never; a login status says why.
    Refused {
        /// See `codes::login`.
        status: u16,
    },
}

/// A session passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// To whom.
    pub to: ConnectionId,
    /// Its handle.
    pub tsih: u16,
    /// Somebody else already waits for it: the new holder must go at once.
    pub superseded: bool,
    /// It is the same session still: the new holder goes on with what the old one leaves.
    pub inherits: bool,
}

/// All sessions.
#[derive(Debug)]
pub struct Registry {
    held: BTreeMap<SessionKey, Seat>,
    handles: BTreeMap<u16, Handle>,
    claims: BTreeMap<ConnectionId, Claimed>,
    /// Sessions of each initiator name.
    of_initiator: BTreeMap<String, usize>,
    last: u16,
    sessions_max: usize,
    per_initiator_max: usize,
}

#[derive(Debug)]
struct Seat {
    holder: ConnectionId,
    waiting: VecDeque<ConnectionId>,
}

/// What a connection holds, or waits for.
#[derive(Debug)]
struct Claimed {
    key: Option<SessionKey>,
    /// Drawn when the seat is free; 0 while it waits.
    tsih: u16,
    cid: u16,
    /// It waits to go on with the session that there is.
    joins: bool,
}

#[derive(Debug)]
struct Handle {
    key: Option<SessionKey>,
    cid: u16,
}

impl Registry {
    /// Empty, for at most `sessions_max` sessions, and `per_initiator_max` of one initiator name.
    #[must_use]
    pub fn new(sessions_max: usize, per_initiator_max: usize) -> Self {
        Self {
            held: BTreeMap::new(),
            handles: BTreeMap::new(),
            claims: BTreeMap::new(),
            of_initiator: BTreeMap::new(),
            last: 0,
            sessions_max: sessions_max.min(usize::from(u16::MAX) - 1),
            per_initiator_max,
        }
    }

    /// `connection` has finished its login and wants its session.
    pub fn claim(&mut self, connection: ConnectionId, claim: Claim) -> Verdict {
        if claim.tsih != 0 {
            return self.join(connection, claim);
        }
        let Some(key) = claim.key else { return self.open(connection, None, claim.cid) };
        if let Some(seat) = self.held.get_mut(&key) {
            seat.waiting.push_back(connection);
            let holder = seat.holder;
            self.claims.insert(connection, Claimed { key: Some(key), tsih: 0, cid: claim.cid, joins: false });
            return Verdict::Wait { holder };
        }
        self.open(connection, Some(key), claim.cid)
    }

    /// `connection` is gone, and nothing of it is outstanding.
    pub fn release(&mut self, connection: ConnectionId) -> Option<Grant> {
        let Claimed { key, tsih, .. } = self.claims.remove(&connection)?;
        let Some(key) = key else {
            self.handles.remove(&tsih);
            return None;
        };
        let seat = self.held.get_mut(&key)?;
        if seat.holder != connection {
            seat.waiting.retain(|waiting| *waiting != connection);
            return None;
        }
        let Some(next) = seat.waiting.pop_front() else {
            self.held.remove(&key);
            self.handles.remove(&tsih);
            self.count_down(&key.initiator);
            return None;
        };
        let superseded = !seat.waiting.is_empty();
        seat.holder = next;
        let (cid, inherits) = self.claims.get(&next).map_or((0, false), |next| (next.cid, next.joins));
        let tsih = if inherits {
            tsih
        } else {
            self.handles.remove(&tsih);
            self.draw(Some(key.clone()), cid)?
        };
        self.claims.insert(next, Claimed { key: Some(key), tsih, cid, joins: false });
        Some(Grant { to: next, tsih, superseded, inherits })
    }

    /// Sessions, those that are still being given up included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// The connection with the claim's id is reinstated. Another one cannot be added, for a session has
    /// one (RFC 7143 6.3.1, 6.3.4, 11.13.5).
    fn join(&mut self, connection: ConnectionId, claim: Claim) -> Verdict {
        let refused = |status| Verdict::Refused { status };
        let Some(handle) = self.handles.get(&claim.tsih) else { return refused(login::NO_SESSION) };
        let Some(key) = claim.key.filter(|key| handle.key.as_ref() == Some(key)) else {
            return refused(login::NO_SESSION);
        };
        if handle.cid != claim.cid {
            return refused(login::TOO_MANY_CONNECTIONS);
        }
        let Some(seat) = self.held.get_mut(&key) else { return refused(login::NO_SESSION) };
        let joins = |waiting: &ConnectionId| self.claims.get(waiting).is_some_and(|claimed| claimed.joins);
        if !seat.waiting.iter().all(joins) {
            // A new session takes the place of this one, which is as good as gone.
            return refused(login::NO_SESSION);
        }
        seat.waiting.push_back(connection);
        let holder = seat.holder;
        self.claims.insert(connection, Claimed { key: Some(key), tsih: 0, cid: claim.cid, joins: true });
        Verdict::Wait { holder }
    }

    fn open(&mut self, connection: ConnectionId, key: Option<SessionKey>, cid: u16) -> Verdict {
        let of_initiator = key.as_ref().and_then(|key| self.of_initiator.get(&key.initiator));
        if of_initiator.is_some_and(|count| *count >= self.per_initiator_max) {
            return Verdict::Refused { status: login::OUT_OF_RESOURCES };
        }
        let Some(tsih) = self.draw(key.clone(), cid) else {
            return Verdict::Refused { status: login::OUT_OF_RESOURCES };
        };
        if let Some(key) = &key {
            self.held.insert(key.clone(), Seat { holder: connection, waiting: VecDeque::new() });
            *self.of_initiator.entry(key.initiator.clone()).or_default() += 1;
        }
        self.claims.insert(connection, Claimed { key, tsih, cid, joins: false });
        Verdict::Granted { tsih }
    }

    fn count_down(&mut self, initiator: &str) {
        let Some(count) = self.of_initiator.get_mut(initiator) else { return };
        *count -= 1;
        if *count == 0 {
            self.of_initiator.remove(initiator);
        }
    }

    /// A handle that is not in use, never 0 (RFC 7143 11.12.6).
    fn draw(&mut self, key: Option<SessionKey>, cid: u16) -> Option<u16> {
        if self.handles.len() >= self.sessions_max {
            return None;
        }
        loop {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if !self.handles.contains_key(&self.last) {
                self.handles.insert(self.last, Handle { key, cid });
                return Some(self.last);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(isid: u8, tsih: u16) -> Claim {
        let key =
            SessionKey { initiator: "i".into(), isid: [0, 0, 0, 0, 0, isid], target: "t".into(), tag: 1 };
        Claim { key: Some(key), tsih, cid: 0 }
    }

    /// Guards reinstatement: the newcomer gets the session when the holder releases it, not before.
    #[test]
    fn reinstates() {
        let mut registry = Registry::new(8, 8);
        let [first, second, third] = [1, 2, 3].map(ConnectionId);
        let Verdict::Granted { tsih } = registry.claim(first, claim(0, 0)) else { panic!() };
        assert_ne!(tsih, 0);
        assert_eq!(registry.claim(second, claim(0, 0)), Verdict::Wait { holder: first });
        assert_eq!(registry.claim(third, claim(0, 0)), Verdict::Wait { holder: first });
        let grant = registry.release(first).unwrap();
        assert_eq!((grant.to, grant.superseded), (second, true));
        assert_ne!(grant.tsih, tsih);
        let grant = registry.release(second).unwrap();
        assert_eq!((grant.to, grant.superseded), (third, false));
        assert_eq!(registry.release(third), None);
        assert!(registry.is_empty());
    }

    /// Guards the reinstatement of a connection: the session keeps its handle; a new session that waits
    /// already leaves nothing to go on with.
    #[test]
    fn reinstates_connection() {
        let mut registry = Registry::new(8, 8);
        let [first, second, third, fourth] = [1, 2, 3, 4].map(ConnectionId);
        let Verdict::Granted { tsih } = registry.claim(first, claim(0, 0)) else { panic!() };
        assert_eq!(registry.claim(second, claim(0, tsih)), Verdict::Wait { holder: first });
        assert_eq!(registry.claim(third, claim(0, 0)), Verdict::Wait { holder: first });
        let gone = Verdict::Refused { status: login::NO_SESSION };
        assert_eq!(registry.claim(fourth, claim(0, tsih)), gone);
        let grant = registry.release(first).unwrap();
        assert_eq!(grant, Grant { to: second, tsih, superseded: true, inherits: true });
        let grant = registry.release(second).unwrap();
        assert_eq!((grant.to, grant.superseded, grant.inherits), (third, false, false));
        assert_ne!(grant.tsih, tsih);
        assert_eq!(registry.claim(fourth, claim(0, tsih)), gone);
        // One that waits and goes away leaves the handle to the holder.
        assert_eq!(registry.claim(fourth, claim(0, grant.tsih)), Verdict::Wait { holder: third });
        assert_eq!(registry.release(fourth), None);
        assert_eq!(registry.len(), 1);
        assert_eq!(registry.claim(fourth, claim(0, grant.tsih)), Verdict::Wait { holder: third });
        registry.release(third);
        registry.release(fourth);
        assert!(registry.is_empty() && registry.of_initiator.is_empty());
    }

    /// Guards others against an initiator that opens sessions without end, and the count when they go,
    /// are reinstated, or lie at another target or portal group.
    #[test]
    fn sessions_of_an_initiator() {
        let mut registry = Registry::new(100, 3);
        let refused = Verdict::Refused { status: login::OUT_OF_RESOURCES };
        let mut second = claim(0, 0);
        second.key.as_mut().unwrap().target = "u".into();
        let mut third = claim(0, 0);
        third.key.as_mut().unwrap().tag = 2;
        for (id, claim) in [(1, claim(0, 0)), (2, second), (3, third)] {
            assert!(matches!(registry.claim(ConnectionId(id), claim), Verdict::Granted { .. }));
        }
        assert_eq!(registry.claim(ConnectionId(4), claim(1, 0)), refused);
        let mut other = claim(1, 0);
        other.key.as_mut().unwrap().initiator = "j".into();
        assert!(matches!(registry.claim(ConnectionId(4), other), Verdict::Granted { .. }));
        assert!(matches!(registry.claim(ConnectionId(5), claim(0, 0)), Verdict::Wait { .. }));
        registry.release(ConnectionId(1));
        assert_eq!(registry.claim(ConnectionId(6), claim(1, 0)), refused);
        registry.release(ConnectionId(5));
        assert!(matches!(registry.claim(ConnectionId(6), claim(1, 0)), Verdict::Granted { .. }));
    }

    /// Guards against a newcomer that goes away while it waits.
    #[test]
    fn waiting_connection_dies() {
        let mut registry = Registry::new(8, 8);
        let [first, second] = [1, 2].map(ConnectionId);
        registry.claim(first, claim(0, 0));
        registry.claim(second, claim(0, 0));
        assert_eq!(registry.release(second), None);
        assert_eq!(registry.release(first), None);
        assert!(registry.is_empty());
    }

    /// Guards other identities, discovery sessions, the maximum, and joining.
    #[test]
    fn verdicts() {
        let mut registry = Registry::new(3, 8);
        let Verdict::Granted { tsih } = registry.claim(ConnectionId(1), claim(0, 0)) else { panic!() };
        assert!(matches!(registry.claim(ConnectionId(2), claim(1, 0)), Verdict::Granted { .. }));
        let discovery = Claim { key: None, tsih: 0, cid: 0 };
        assert!(matches!(registry.claim(ConnectionId(3), discovery.clone()), Verdict::Granted { .. }));
        let refused = |status| Verdict::Refused { status };
        assert_eq!(registry.claim(ConnectionId(4), discovery), refused(login::OUT_OF_RESOURCES));
        assert_eq!(registry.claim(ConnectionId(5), claim(0, 999)), refused(login::NO_SESSION));
        assert_eq!(registry.claim(ConnectionId(5), claim(1, tsih)), refused(login::NO_SESSION));
        let other = Claim { cid: 1, ..claim(0, tsih) };
        assert_eq!(registry.claim(ConnectionId(5), other), refused(login::TOO_MANY_CONNECTIONS));
        registry.release(ConnectionId(3));
        assert!(matches!(registry.claim(ConnectionId(4), claim(2, 0)), Verdict::Granted { .. }));
    }
}
