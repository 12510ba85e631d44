//! Buckets and keys of one workspace, made up by its host and kept with its other made-up values.

use envforge_api::{
    ids::WorkspaceId,
    names::{ServiceName, short_hash},
    resource::ResourceKind,
    secret::Secret,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The only region.
pub const REGION: &str = "us-east-1";

/// What an S3 client authenticates with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// Names the secret.
    pub access_key: String,
    /// The secret.
    pub secret_key: Secret,
}

impl Keys {
    /// New ones, of lengths that every server takes.
    #[must_use]
    pub fn random() -> Self {
        Self { access_key: Secret::random(12).expose().to_owned(), secret_key: Secret::random(25) }
    }
}

/// A bucket with the keys that open it and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its name, which is also that of its user.
    pub name: String,
    /// The keys.
    pub keys: Keys,
}

impl Bucket {
    fn new(workspace: &WorkspaceId, service: Option<&ServiceName>) -> Self {
        // At most 63 of a-z, 0-9 and `-`.
        let id = workspace.as_str().replace('_', "-");
        let name = service.map_or_else(|| id.clone(), |service| format!("{id}-{}", short_hash(service.as_str())));
        Self { name, keys: Keys::random() }
    }

    /// The bucket that a resource's fields speak of.
    #[must_use]
    pub fn of_fields(fields: &BTreeMap<String, Secret>) -> Option<Self> {
        let field = |name: &str| fields.get(name).map(|value| value.expose().to_owned());
        let keys = Keys { access_key: field("access_key")?, secret_key: Secret::new(field("secret_key")?) };
        Some(Self { name: field("bucket")?, keys })
    }

    /// The fields of the resource; `origin` is where browsers reach it.
    #[must_use]
    pub fn fields(&self, origin: Option<&str>) -> BTreeMap<String, Secret> {
        let endpoint = format!("http://localhost:{}", ResourceKind::Storage.port());
        let pairs = [
            ("url", origin.unwrap_or(&endpoint).to_owned()),
            ("endpoint", endpoint.clone()),
            ("bucket", self.name.clone()),
            ("region", REGION.to_owned()),
            ("access_key", self.keys.access_key.clone()),
        ];
        let plain = pairs.into_iter().map(|(name, value)| (name.to_owned(), Secret::new(value)));
        plain.chain([("secret_key".to_owned(), self.keys.secret_key.clone())]).collect()
    }
}

/// All of a workspace's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyring {
    #[serde(default)]
    shared: Option<Bucket>,
    /// Those that services have for themselves. One that is gone for a while finds its own again.
    #[serde(default)]
    services: BTreeMap<ServiceName, Bucket>,
}

impl Keyring {
    /// Makes up what is missing of one part.
    pub fn complete(&mut self, workspace: &WorkspaceId, service: Option<&ServiceName>) {
        match service {
            None => drop(self.shared.get_or_insert_with(|| Bucket::new(workspace, None))),
            Some(service) => {
                let made = || Bucket::new(workspace, Some(service));
                self.services.entry(service.clone()).or_insert_with(made);
            }
        }
    }

    /// One of them.
    #[must_use]
    pub fn bucket(&self, service: Option<&ServiceName>) -> Option<&Bucket> {
        service.map_or(self.shared.as_ref(), |service| self.services.get(service))
    }

    /// Makes up what is missing of the parts that another one has.
    pub fn follow(&mut self, workspace: &WorkspaceId, other: &Self) {
        if other.shared.is_some() {
            self.complete(workspace, None);
        }
        other.services.keys().for_each(|service| self.complete(workspace, Some(service)));
    }

    /// Names of its buckets, each with the name of the same part of another ring.
    pub fn beside<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let parts = std::iter::once(None).chain(self.services.keys().map(Some));
        parts.filter_map(|part| Some((self.bucket(part)?.name.as_str(), other.bucket(part)?.name.as_str())))
    }

    /// Each of them.
    pub fn all(&self) -> impl Iterator<Item = &Bucket> {
        self.shared.iter().chain(self.services.values())
    }

    /// The secret that an access key names.
    #[must_use]
    pub fn secret(&self, access_key: &str) -> Option<&Secret> {
        self.all().find(|bucket| bucket.keys.access_key == access_key).map(|bucket| &bucket.keys.secret_key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_keeps_its_bucket_which_is_no_other_s_and_whose_name_every_server_takes() {
        let (one, two) = (WorkspaceId::generate(), WorkspaceId::generate());
        let web: ServiceName = "web".parse().expect("a name");
        let mut ring = Keyring::default();
        ring.complete(&one, None);
        let first = ring.clone();
        ring.complete(&one, Some(&web));
        ring.complete(&one, None);
        assert_eq!(ring.bucket(None), first.bucket(None));
        let mut other = Keyring::default();
        other.complete(&two, None);
        let all: Vec<&Bucket> = ring.all().chain(other.all()).collect();
        assert_eq!(all.len(), 3);
        for (at, bucket) in all.iter().enumerate() {
            let sound = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            assert!((3..=63).contains(&bucket.name.len()) && bucket.name.bytes().all(sound), "{}", bucket.name);
            assert!((3..=20).contains(&bucket.keys.access_key.len()) && bucket.keys.secret_key.expose().len() <= 40);
            assert!(all[..at].iter().all(|o| o.name != bucket.name && o.keys.access_key != bucket.keys.access_key));
            assert_eq!(Bucket::of_fields(&bucket.fields(None)).as_ref(), Some(*bucket));
        }
        let mut copy = Keyring::default();
        copy.follow(&two, &ring);
        assert_eq!(ring.beside(&copy).count(), 2);
        assert!(ring.beside(&copy).all(|(of, other)| of != other));
        assert_eq!(ring.secret(&all[1].keys.access_key), Some(&all[1].keys.secret_key));
        assert_eq!(ring.secret(&all[2].keys.access_key), None, "another workspace's");
        let url = all[0].fields(Some("http://storage--w--o.dev.localhost"))["url"].expose().to_owned();
        assert_eq!(url, "http://storage--w--o.dev.localhost");
    }
}
