//! What lies in the directory where the store's own files should be.

use super::*;

const TARGET: &str = "crm";

#[tokio::test]
async fn what_is_no_segment_but_is_named_like_one_stops_nothing() {
    let mut world = World::new();
    world.settings.disk = Arc::new(crate::store::embedded::disk::RealDisk);
    let store = world.open();
    world.commit(&store, b"kept", &[TARGET]).await.1.unwrap();
    store.close().await;
    drop(store);
    let dir = world.settings.dir.join("segments");
    std::fs::create_dir(dir.join("00000007.log")).unwrap();
    std::fs::write(dir.join("00000008.log"), b"").unwrap();
    std::os::unix::fs::symlink("nowhere", dir.join("00000009.log")).unwrap();
    for delete_index in [false, true] {
        if delete_index {
            world.delete_index();
        }
        let store = world.open();
        assert_eq!(lease(&store, TARGET, 8).await.len(), 1);
        store.close().await;
    }
    assert!(dir.join("00000007.log").is_dir());
}

#[tokio::test]
async fn an_index_that_is_a_directory_or_of_a_newer_version_is_no_loss() {
    let world = World::new();
    let store = world.open();
    world.commit(&store, b"kept", &[TARGET]).await.1.unwrap();
    store.close().await;
    drop(store);
    for suffix in ["", "-wal", "-shm"] {
        world.delete_index();
        let inside = world.settings.dir.join(format!("index.sqlite{suffix}/inside"));
        std::fs::create_dir_all(&inside).unwrap();
        let store = world.open();
        assert_eq!(lease(&store, TARGET, 8).await.len(), 1, "{suffix}");
        store.close().await;
        drop(store);
        if inside.exists() {
            // Left alone, with the index in memory.
            std::fs::remove_dir_all(inside.parent().unwrap()).unwrap();
        }
    }
    let newer = rusqlite::Connection::open(world.index_file()).unwrap();
    newer.execute("UPDATE meta SET value = 99 WHERE name = 'format'", ()).unwrap();
    newer.execute("DELETE FROM delivery", ()).unwrap();
    drop(newer);
    let store = world.open();
    assert_eq!(lease(&store, TARGET, 8).await.len(), 1);
}
