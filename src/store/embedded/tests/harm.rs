//! What the harm that proofs do to a store's files costs: on a real disk, as theirs.

use super::*;
use crate::store::embedded::disk::RealDisk;
use crate::store::embedded::harm::{cut_power, flip_bit, newest_segment};

const TARGET: &str = "crm";
const BODIES: [&[u8]; 3] = [b"first", b"second", b"third"];

/// What a store that was killed has left on a real disk: three webhooks, each synced by itself.
async fn three() -> (World, Vec<WebhookId>) {
    let (world, ids) = three_and_their_index().await;
    // What the index has is durable: without it nobody knows.
    world.delete_index();
    (world, ids)
}

async fn three_and_their_index() -> (World, Vec<WebhookId>) {
    let mut world = World::new();
    let store = world.open();
    let mut ids = Vec::new();
    for body in BODIES {
        let (webhook, result) = world.commit(&store, body, &[TARGET]).await;
        result.unwrap();
        ids.push(webhook.id);
    }
    store.flush().await;
    let killed = world.disk.kill();
    drop(store);
    for path in killed.files() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        killed.change(&path, |content| std::fs::write(&path, content).unwrap());
    }
    world.settings.disk = Arc::new(RealDisk);
    (world, ids)
}

async fn left(world: &World) -> Vec<Bytes> {
    drain(&world.open(), TARGET).await
}

#[tokio::test]
async fn a_power_cut_takes_only_what_nobody_knows_of() {
    let (world, ids) = three().await;
    let cut = cut_power(&world.settings.dir, 0, |id| id == ids[2], || 0).unwrap();
    assert_eq!((cut.sectors, cut.webhooks), (0, vec![]));
    let old = newest_segment(&world.settings.dir).unwrap();
    assert_eq!(
        (old, cut_power(&world.settings.dir, old, |_| false, || 0).unwrap().sectors),
        (1, 0)
    );
    let cut = cut_power(&world.settings.dir, 0, |_| false, || 0).unwrap();
    assert!(cut.sectors > 0);
    assert_eq!(cut.webhooks, [ids[2]]);
    assert_eq!(left(&world).await, BODIES[..2]);
}

#[tokio::test]
async fn a_power_cut_takes_nothing_that_the_index_knows_of() {
    let (world, _) = three_and_their_index().await;
    let cut = cut_power(&world.settings.dir, 0, |_| false, || 0).unwrap();
    assert_eq!(cut.sectors, 0);
    assert_eq!(left(&world).await, BODIES);
}

#[tokio::test]
async fn a_flipped_bit_harms_the_record_it_names_and_no_other() {
    for seed in 0..20 {
        let (world, ids) = three().await;
        let mut random = fastrand::Rng::with_seed(seed);
        let flipped = flip_bit(&world.settings.dir, || random.u64(..)).unwrap().unwrap();
        let harmed = ids.iter().position(|id| *id == flipped.webhook).unwrap();
        let left = left(&world).await;
        let others = (0..3).filter(|n| *n != harmed).map(|n| BODIES[n]);
        // The filling behind a record may be what was hit.
        assert!(others.eq(&left) || left == BODIES, "seed {seed}: {flipped:?} left {left:?}");
    }
}

#[tokio::test]
async fn there_is_nothing_to_harm_in_an_empty_store() {
    let (mut world, random) = (World::new(), || 7);
    world.settings.disk = Arc::new(RealDisk);
    drop(world.open());
    assert_eq!(flip_bit(&world.settings.dir, random).unwrap(), None);
    assert_eq!(cut_power(&world.settings.dir, 0, |_| false, random).unwrap().webhooks, []);
}
