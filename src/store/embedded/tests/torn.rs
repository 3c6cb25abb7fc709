//! What a power cut leaves of a record, and what it does not.

use super::damage::{Snapshot, scan, snapshot};
use super::*;

const TARGET: &str = "crm";

#[tokio::test]
async fn sectors_that_a_power_cut_took_from_the_last_batch_are_no_damage() {
    let mut world = World::new();
    let store = world.open();
    let path = segments(&world).pop().unwrap();
    world.commit(&store, b"first", &[TARGET]).await.1.unwrap();
    let Snapshot(synced) = snapshot(&world, &path);
    world.commit(&store, &[7; 3000], &[TARGET]).await.1.unwrap();
    let disk = world.disk.kill();
    drop(store);
    world.use_disk(disk);
    let Snapshot(written) = snapshot(&world, &path);
    let differs = |at: &usize| synced[*at..*at + 512] != written[*at..*at + 512];
    let sectors: Vec<usize> = (0..written.len()).step_by(512).filter(differs).collect();
    assert!((7..=8).contains(&sectors.len()), "{sectors:?}");
    for lost in 1..1u32 << sectors.len() {
        let mut bytes = written.clone();
        for (_, at) in sectors.iter().enumerate().filter(|(n, _)| lost & (1 << n) != 0) {
            bytes[*at..*at + 512].copy_from_slice(&synced[*at..*at + 512]);
        }
        let (bodies, damaged) = scan(&world, &path, bytes);
        assert_eq!((&bodies[..], damaged), (&[Bytes::from_static(b"first")][..], 0), "{lost:b}");
    }
}

#[tokio::test]
async fn a_sector_that_is_gone_is_damage_where_later_webhooks_show_that_it_was_there() {
    let mut world = World::new();
    let store = world.open();
    let path = segments(&world).pop().unwrap();
    for body in [[1; 3000], [2; 3000], [3; 3000]] {
        world.commit(&store, &body, &[TARGET]).await.1.unwrap();
    }
    let disk = world.disk.kill();
    drop(store);
    world.use_disk(disk);
    let Snapshot(written) = snapshot(&world, &path);
    let second = written.windows(100).position(|bytes| bytes == [2; 100]).unwrap();
    let inside = second.next_multiple_of(512);
    for sector in [inside, inside + 512] {
        let mut bytes = written.clone();
        bytes[sector..sector + 512].fill(0);
        let (bodies, damaged) = scan(&world, &path, bytes);
        assert_eq!((bodies.len(), damaged), (2, 1), "{sector}");
    }
}
