//! Where the answer to one operation goes.

use std::sync::Arc;

use lunette_proto::node::{Failure, Replies, Reply};

/// The right to answer one request, once. Dropped without an answer, it answers
/// [`Failure::DiskFailed`]: nobody waits for ever on a thread that died.
#[must_use]
pub struct Completion(Option<(u64, Arc<dyn Replies>)>);

impl Completion {
    /// Answers go to `to` under `tag`.
    pub fn new(tag: u64, to: Arc<dyn Replies>) -> Self {
        Self(Some((tag, to)))
    }

    /// Answers.
    pub fn complete(mut self, reply: Reply) {
        if let Some((tag, to)) = self.0.take() {
            to.reply(tag, reply);
        }
    }

    /// Answers all of them, those that go to the same place at once: who waits there is woken once.
    pub(super) fn complete_all(answers: &mut Vec<(Self, Reply)>) {
        answers.sort_by_key(|(done, _)| done.address());
        let mut together = Vec::with_capacity(answers.len());
        let mut place: Option<Arc<dyn Replies>> = None;
        for (mut done, reply) in answers.drain(..) {
            let Some((tag, to)) = done.0.take() else { continue };
            let last = place.get_or_insert_with(|| to.clone());
            if address(last) != address(&to) {
                std::mem::replace(last, to).reply_all(&mut together);
            }
            together.push((tag, reply));
        }
        if let Some(last) = place {
            last.reply_all(&mut together);
        }
    }

    fn address(&self) -> usize {
        self.0.as_ref().map_or(0, |(_, to)| address(to))
    }
}

/// What tells places apart while they are there.
fn address(to: &Arc<dyn Replies>) -> usize {
    Arc::as_ptr(to).cast::<()>().addr()
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some((tag, to)) = self.0.take() {
            to.reply(tag, Err(Failure::DiskFailed));
        }
    }
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Completion").field(&self.0.as_ref().map(|(tag, _)| tag)).finish()
    }
}

#[cfg(test)]
mod tests {
    use lunette_proto::node::ReplyBody;
    use parking_lot::Mutex;

    use super::*;

    /// What came, by how it came.
    #[derive(Default)]
    struct Inbox(Mutex<Vec<Vec<(u64, Reply)>>>);

    impl Replies for Inbox {
        fn reply(&self, tag: u64, reply: Reply) {
            self.0.lock().push(vec![(tag, reply)]);
        }

        fn reply_all(&self, answers: &mut Vec<(u64, Reply)>) {
            self.0.lock().push(std::mem::take(answers));
        }
    }

    /// Guards answers that go out together: each place has its own once, all of them, in their order.
    #[test]
    fn every_place_has_its_own() {
        let places = [(); 3].map(|()| Arc::new(Inbox::default()));
        let reply = |tag: u64| if tag.is_multiple_of(3) { Err(Failure::Busy) } else { Ok(ReplyBody::Done) };
        let of = |place: usize| (0..40u64).filter(move |tag| (tag * tag) as usize % 5 % 3 == place);
        let mut answers = (0..40u64)
            .map(|tag| (Completion::new(tag, places[(tag * tag) as usize % 5 % 3].clone()), reply(tag)))
            .collect::<Vec<_>>();
        Completion::complete_all(&mut answers);
        for (at, place) in places.iter().enumerate() {
            let expected = of(at).map(|tag| (tag, reply(tag))).collect::<Vec<_>>();
            assert_eq!(*place.0.lock(), if expected.is_empty() { vec![] } else { vec![expected] });
        }
        Completion::complete_all(&mut answers);
        drop(Completion::new(7, places[0].clone()));
        assert_eq!(places[0].0.lock().last(), Some(&vec![(7, Err(Failure::DiskFailed))]));
    }
}
