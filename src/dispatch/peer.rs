//! The endpoint that a message goes to: the host of a webhook, or one recipient of a channel.
//!
//! A [`Peer`] is a hash, so that the queue keeps eight bytes for it and no address.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::model::{Address, Target};

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Peer(u64);

impl Peer {
    pub(super) fn of(target: &Target) -> Self {
        let mut hasher = DefaultHasher::new();
        target.channel.hash(&mut hasher);
        match &target.address {
            Address::Url(url) => host(url).hash(&mut hasher),
            address => address.expose().hash(&mut hasher),
        }
        Self(hasher.finish())
    }

    #[cfg(test)]
    pub(super) fn numbered(number: u64) -> Self {
        Self(number)
    }
}

/// `scheme://host:port` of a URL, without credentials, path and query; those may be secrets.
pub(super) fn host(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let rest = url.get(start..).unwrap_or_default();
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Channel;

    #[test]
    fn a_webhook_is_known_by_its_host_and_others_by_their_address() {
        for (url, name) in [
            ("https://hooks.example.org/a?b=c", "hooks.example.org"),
            ("https://user:secret@hooks.example.org:8443/a", "hooks.example.org:8443"),
            ("http://[::1]:80/x", "[::1]:80"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(host(url), name);
        }
        let hook = |url: &str| {
            Peer::of(&Target { channel: Channel::Webhook, address: Address::Url(url.into()) })
        };
        assert_eq!(hook("https://a.example/1"), hook("https://a.example/2"));
        assert_ne!(hook("https://a.example/1"), hook("https://b.example/1"));
        let push = |token: &str| {
            Peer::of(&Target { channel: Channel::Push, address: Address::Token(token.into()) })
        };
        assert_ne!(push("one"), push("two"));
    }
}
