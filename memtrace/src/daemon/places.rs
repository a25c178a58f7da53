//! Places for clients. Whoever holds one and has not asked yet gives it up to whoever comes: a client that asks is not
//! kept out by those that do not.

use std::{cell::RefCell, collections::BTreeMap};

use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

/// Places, and who holds one without having asked.
pub struct Places {
    free: Semaphore,
    silent: RefCell<Silent>,
}

/// Those that have not asked, the first to come first.
#[derive(Default)]
struct Silent {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place; given back when dropped.
pub struct Place<'a> {
    _one: SemaphorePermit<'a>,
    places: &'a Places,
    number: u64,
}

impl Places {
    /// This many.
    pub fn new(count: usize) -> Self {
        Self {
            free: Semaphore::new(count),
            silent: RefCell::default(),
        }
    }

    /// A place for one who came, and what tells that it has to be given up. `None` where all have asked who hold one.
    pub async fn take(&self) -> Option<(Place<'_>, oneshot::Receiver<()>)> {
        let one = match self.free.try_acquire() {
            Ok(one) => one,
            // It is given up as soon as its task runs.
            Err(_) if self.oldest_gives_way() => self.free.acquire().await.ok()?,
            Err(_) => return None,
        };
        let (sender, told) = oneshot::channel();
        let mut silent = self.silent.borrow_mut();
        silent.next += 1;
        let number = silent.next;
        silent.waiting.insert(number, sender);
        let place = Place {
            _one: one,
            places: self,
            number,
        };
        Some((place, told))
    }

    fn oldest_gives_way(&self) -> bool {
        let oldest = self.silent.borrow_mut().waiting.pop_first();
        oldest.is_some_and(|(_, told)| told.send(()).is_ok())
    }
}

impl Place<'_> {
    /// Its holder has asked, and keeps it to the answer.
    pub fn asked(&self) {
        let mut silent = self.places.silent.borrow_mut();
        silent.waiting.remove(&self.number);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.asked();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_that_has_not_asked_gives_way() {
        let places = Places::new(2);
        let (first, _told) = places.take().await.unwrap();
        first.asked();
        let (second, told) = places.take().await.unwrap();
        let gives_way = async {
            told.await.unwrap();
            drop(second);
        };
        let (third, ()) = tokio::join!(places.take(), gives_way);
        let (third, _told) = third.unwrap();
        third.asked();
        assert!(places.take().await.is_none());
        drop(first);
        assert!(places.take().await.is_some());
    }
}
