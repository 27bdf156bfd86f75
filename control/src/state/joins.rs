//! How machines come to the cluster: ids for members of the control plane, and tokens that admit one machine once.

use lunette_proto::map::{JoinToken, TokenId};

use super::limits::TOKENS_MAX;
use super::{Change, Draft, Rejection, Response};

/// The member that founds a control plane.
const FOUNDER: u64 = 1;
/// How long a token is remembered after it has expired.
const REMEMBERED_MS: u64 = 7 * 24 * 3600 * 1000;

impl Draft<'_> {
    pub(super) fn new_member(&mut self) -> Result<Response, Rejection> {
        let mut joins = self.map.joins.clone();
        let member = joins.last_member.max(FOUNDER).checked_add(1).ok_or(Rejection::IdsExhausted)?;
        joins.last_member = member;
        self.put(Change::SetJoins(joins));
        Ok(Response::Member(member))
    }

    pub(super) fn add_token(
        &mut self,
        id: TokenId,
        token: &JoinToken,
        now_unix_ms: u64,
    ) -> Result<Response, Rejection> {
        let mut joins = self.map.joins.clone();
        joins.tokens.retain(|_, known| known.expires_unix_ms.saturating_add(REMEMBERED_MS) > now_unix_ms);
        if joins.tokens.len() >= TOKENS_MAX {
            // Whoever comes with one of these would be refused anyway, though with fewer words.
            joins.tokens.retain(|_, known| !known.used && known.expires_unix_ms > now_unix_ms);
        }
        if joins.tokens.len() >= TOKENS_MAX {
            return Err(Rejection::TooMany {
                what: "join tokens that are not used yet".into(),
                max: TOKENS_MAX,
            });
        }
        joins.tokens.insert(id, token.clone());
        self.put(Change::SetJoins(joins));
        Ok(Response::Done)
    }

    pub(super) fn use_token(&mut self, id: TokenId, now_unix_ms: u64) -> Result<Response, Rejection> {
        let mut joins = self.map.joins.clone();
        let token = joins.tokens.get_mut(&id).ok_or(Rejection::NoToken)?;
        if token.used {
            return Err(Rejection::TokenUsed);
        }
        if token.expires_unix_ms <= now_unix_ms {
            let seconds = (now_unix_ms - token.expires_unix_ms).div_ceil(1000);
            return Err(Rejection::TokenExpired { seconds });
        }
        token.used = true;
        let key = token.key.clone();
        self.put(Change::SetJoins(joins));
        Ok(Response::Key(key))
    }
}

#[cfg(test)]
mod tests {
    use lunette_proto::map::Sealed;

    use super::*;
    use crate::state::{Command, State};

    fn token(expires_unix_ms: u64) -> JoinToken {
        JoinToken { expires_unix_ms, used: false, key: Sealed(vec![7]) }
    }

    /// Guards against a member that gets the id of one that was there before: it could vote twice in one term.
    #[test]
    fn ids_of_members() {
        let mut state = State::default();
        for want in 2..6 {
            let applied = state.apply(&Command::NewMember).expect("given");
            assert_eq!(applied.response, Response::Member(want));
        }
    }

    /// Guards the door: a token admits once, in time, and only where it was made; a refusal changes nothing.
    #[test]
    fn tokens_admit_once() {
        let mut state = State::default();
        let (a, b) = (TokenId([1; 32]), TokenId([2; 32]));
        for (id, expires) in [(a, 1000), (b, 2000)] {
            let command = Command::AddToken { id, token: token(expires), now_unix_ms: 0 };
            state.apply(&command).expect("added");
        }
        let mut came = |id, now_unix_ms| {
            let before = state.clone();
            let answer = state.apply(&Command::UseToken { id, now_unix_ms }).map(|applied| applied.response);
            assert!(answer.is_ok() || before == state, "a refusal changes nothing");
            answer
        };
        assert_eq!(came(TokenId([3; 32]), 1), Err(Rejection::NoToken));
        assert_eq!(came(a, 999), Ok(Response::Key(Sealed(vec![7]))));
        assert_eq!(came(a, 999), Err(Rejection::TokenUsed));
        assert_eq!(came(b, 2000), Err(Rejection::TokenExpired { seconds: 0 }));
        assert_eq!(came(b, 3001), Err(Rejection::TokenExpired { seconds: 2 }));
    }

    /// Guards memory: what cannot admit any more is forgotten, and what can is not.
    #[test]
    fn tokens_are_bounded() {
        let mut state = State::default();
        let id = |index: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&index.to_le_bytes());
            TokenId(id)
        };
        let add = |state: &mut State, index, expires, now_unix_ms| {
            let command = Command::AddToken { id: id(index), token: token(expires), now_unix_ms };
            state.apply(&command).map(|_| ())
        };
        for index in 0..TOKENS_MAX {
            add(&mut state, index, 1000 + index as u64, 0).expect("room");
        }
        let full = add(&mut state, TOKENS_MAX, 9000, 0).expect_err("full");
        assert!(matches!(full, Rejection::TooMany { max: TOKENS_MAX, .. }));
        add(&mut state, TOKENS_MAX, 9000, 1001).expect("two have expired");
        assert_eq!(state.map().joins.tokens.len(), TOKENS_MAX - 1);
        add(&mut state, TOKENS_MAX + 1, u64::MAX, 9000 + REMEMBERED_MS).expect("all have expired long ago");
        assert_eq!(state.map().joins.tokens.len(), 1);
    }
}
