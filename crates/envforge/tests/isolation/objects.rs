//! Objects of storage: whatever a request that the keys of one workspace sign is made to look like, it leads to that
//! workspace's bucket or nowhere.

use super::world::World;
use serde_json::{Value, json};

/// Requests of every shape.
const TRIES: &str = include_str!("objects.py");

/// Everything that a bucket's own user can see of it.
const STATE: &str = r"
import hashlib
versions = s3.list_object_versions(Bucket=bucket)
tell([[(o['Key'], o['ETag'], o['Size'], str(o['LastModified'])) for o in versions.get('Versions', [])], versions.get('DeleteMarkers', []),
      [(o['Key'], o['ETag'], str(o['LastModified'])) for o in s3.list_objects_v2(Bucket=bucket)['Contents']],
      [u['Key'] for u in s3.list_multipart_uploads(Bucket=bucket).get('Uploads', [])],
      s3.get_object_tagging(Bucket=bucket, Key='own')['TagSet'], hashlib.sha256(s3.get_object(Bucket=bucket, Key='own')['Body'].read()).hexdigest()])
";

/// The state of a bucket as its own user sees it, or, of a workspace that sleeps, as its owner does.
fn state(world: &World, of: &str) -> Value {
    if of != "c" {
        return world.inside(of, STATE);
    }
    let local = world.local();
    let contents = ["secret", "own"].map(|key| local.ok(&["s3", of, "get", key, "-"]));
    json!([local.json(&["s3", of]), contents])
}

#[test]
fn nothing_of_another_bucket_is_listed_read_copied_written_or_removed_whatever_a_request_looks_like() {
    let Some(world) = World::get() else { return };
    for (from, whose) in [("a", "b"), ("b", "a"), ("a", "c"), ("f", "a"), ("a", "f")] {
        let before = state(&world, whose);
        let script = TRIES.replace("%FROM%", from).replace("%WHOSE%", whose);
        let script =
            script.replace("%BUCKET%", world.of(whose, "S3_BUCKET")).replace("%URL%", world.of(whose, "S3_URL"));
        // `fails`: what is refused for a neighbour's bucket works for one's own.
        let tried = world.inside(from, &script);
        assert_eq!(tried, json!({ "found": {}, "fails": [] }), "{from} at {whose}");
        assert_eq!(state(&world, whose), before, "{from} at {whose}");
    }
    world.unharmed(&["a", "b", "f"], "requests of every shape");
}
