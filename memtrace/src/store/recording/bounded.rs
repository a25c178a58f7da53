//! Lists in JSON that take more memory than their text, up to a limit.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};

use super::EVENT_BYTES;

/// A list whose items take `item_bytes` each beside their texts: no longer than an event may be.
pub(super) fn list<'d, T: Deserialize<'d>, D: Deserializer<'d>>(
    from: D,
    item_bytes: usize,
) -> Result<Vec<T>, D::Error> {
    from.deserialize_seq(Bounded {
        limit: EVENT_BYTES / item_bytes,
        items: PhantomData,
    })
}

struct Bounded<T> {
    limit: usize,
    items: PhantomData<T>,
}

impl<'d, T: Deserialize<'d>> Visitor<'d> for Bounded<T> {
    type Value = Vec<T>;

    fn expecting(&self, to: &mut fmt::Formatter) -> fmt::Result {
        to.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'d>>(self, mut from: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = from.next_element()? {
            if items.len() == self.limit {
                return Err(A::Error::custom("a list is too long"));
            }
            items.push(item);
        }
        Ok(items)
    }
}
