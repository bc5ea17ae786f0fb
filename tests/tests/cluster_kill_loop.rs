//! SIGKILL, again and again, of nodes of a real cluster under a producer that never rests: one, two or all at a time, leaders
//! among them, started again at once or after a while. Nothing acknowledged is lost, nothing is there twice, on no node.
//!
//! `CHRONIK_CLUSTER_KILL_ROUNDS` sets the number of rounds, `CHRONIK_CLUSTER_KILL_SEED` the seed. The moments of the kills
//! are counted in acknowledgements, so a seed brings back the same load and the same kind of moments, though not the same
//! instants; who leads then is the cluster's affair.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "this test runs real processes on real time")]

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use chronik_tests::cluster::{
    Cluster, DEADLINE, cluster_status, create_topic, leaders_now, run_on, run_until_ready,
};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::scratch::{count_from_env, seed_from_env};
use chronik_tests::workload::Load;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

const NODES: usize = 3;
const PARTITIONS: usize = 6;
const ROUNDS_DEFAULT: usize = 20;
/// A kill comes after at least one and at most so many acknowledgements.
const ACKS_PER_ROUND_MAX: usize = 800;
/// Rounds between two readings: what was read once must stay.
const READ_EACH: usize = 5;
/// Looks at the readiness of a node before it is killed again while it starts.
const PROBES_BEFORE_KILL_MAX: usize = 40;

/// Who is killed in a round.
#[derive(Debug, Clone, Copy)]
enum Victims {
    Any,
    /// Whoever leads some partition.
    Leader,
    /// Whoever leads the catalog.
    Controller,
    /// Two at once, so that nothing has a quorum.
    Two,
    /// All at once: what nobody had synced is gone everywhere.
    All,
}

/// When they are started again.
#[derive(Debug, Clone, Copy)]
enum Return {
    AtOnce,
    /// And killed once more before they are ready.
    Twice,
    /// Once those that are left have noticed and, if they can, gone on.
    Later,
}

const VICTIMS: [Victims; 5] =
    [Victims::Any, Victims::Leader, Victims::Controller, Victims::Two, Victims::All];
const RETURNS: [Return; 3] = [Return::AtOnce, Return::Twice, Return::Later];

#[test]
fn given_a_load_when_nodes_are_killed_again_and_again_then_all_acked_is_on_every_node_once_and_in_order()
 {
    let seed = seed_from_env("CHRONIK_CLUSTER_KILL_SEED").unwrap();
    let rounds = count_from_env("CHRONIK_CLUSTER_KILL_ROUNDS", ROUNDS_DEFAULT).unwrap();
    println!(
        "to see it again: CHRONIK_CLUSTER_KILL_SEED={seed} CHRONIK_CLUSTER_KILL_ROUNDS={rounds} \
         cargo test --test cluster_kill_loop -- --nocapture"
    );
    // Small files that soon become segments: kills fall into rolls, and into the writing of segments.
    let settings = Settings { wal_file_bytes: 2 << 20, ..Settings::new() };
    let settings = settings.with_top("wal.indexing_interval = 1");
    let mut cluster = Cluster::start(NODES, &settings).unwrap();
    run_on(&mut cluster, |cluster| kill_loop(cluster, rounds, seed));
}

fn kill_loop(cluster: &mut Cluster, rounds: usize, seed: u64) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let topic = fresh_name("kills");
    create_topic(cluster.node(1), &topic, PARTITIONS, NODES)?;
    let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, seed)?;
    let started = Instant::now();
    // Every kind of kill with every kind of return, in any order.
    let mut deck = Vec::new();
    for round in 1..=rounds {
        if deck.is_empty() {
            deck = VICTIMS.iter().flat_map(|v| RETURNS.map(|r| (*v, r))).collect();
            deck.shuffle(&mut rng);
        }
        let Some((victims, back)) = deck.pop() else { bail!("an empty deck") };
        let what = format!("round {round}: {victims:?}, back: {back:?}");
        load.run_until_acked(rng.random_range(1..=ACKS_PER_ROUND_MAX), DEADLINE)?;
        let killed = kill_once(cluster, &mut load, (victims, back), &mut rng);
        let killed = killed.with_context(|| what.clone())?;
        load.run_until_each_acked(1, DEADLINE).with_context(|| what.clone())?;
        // Otherwise the next round begins while they are still catching up.
        let is_read = round.is_multiple_of(READ_EACH);
        let is_awaited = is_read || rng.random_bool(0.5);
        if is_awaited {
            run_until_ready(cluster, &mut load).with_context(|| what.clone())?;
        }
        if is_read {
            cluster.check(&mut load).with_context(|| what.clone())?;
        }
        println!(
            "{what}, killed {killed:?}, awaited: {is_awaited}; {} of {} acknowledged after {:?}",
            load.ledger.acked(),
            load.ledger.sent(),
            started.elapsed()
        );
    }
    run_until_ready(cluster, &mut load)?;
    load.drain(DEADLINE)?;
    cluster.wait_whole()?;
    cluster.check_every_node(&mut load)
}

/// Kills and starts again; who it was.
fn kill_once(
    cluster: &mut Cluster,
    load: &mut Load,
    (victims, back): (Victims, Return),
    rng: &mut StdRng,
) -> Result<Vec<i32>> {
    let victims = choose(cluster, load, victims, rng)?;
    kill(cluster, &victims)?;
    match back {
        Return::AtOnce => {}
        Return::Twice => {
            let probes = rng.random_range(0..=PROBES_BEFORE_KILL_MAX);
            for id in &victims {
                cluster.node(*id).spawn()?;
            }
            let mut looks = 0;
            load.run_until("it is ready or killed again", DEADLINE, |_| {
                looks += 1;
                let is_over =
                    looks > probes || victims.iter().all(|id| cluster.node(*id).is_ready());
                is_over.then_some(())
            })?;
            kill(cluster, &victims)?;
        }
        Return::Later => {
            let left = cluster.others(&victims);
            if left.len() > NODES / 2 {
                load.run_until_each_acked(1, DEADLINE).context("two of three go on")?;
            } else if let [left] = left[..] {
                let topic = load.topic().to_owned();
                load.run_until("one of three leads nothing", DEADLINE, |_| {
                    // One that was on its way when the others went serves nobody.
                    let leaders =
                        leaders_now(cluster.node(left), &topic, PARTITIONS).unwrap_or_default();
                    (!leaders.contains(&left)).then_some(())
                })?;
            }
        }
    }
    for (started, id) in (1..).zip(&victims) {
        cluster.node(*id).spawn()?;
        let running = NODES - victims.len() + started;
        if victims.len() > 1 && running > NODES / 2 && rng.random_bool(0.5) {
            load.run_until_each_acked(1, DEADLINE).context("two of three go on again")?;
        }
    }
    Ok(victims)
}

fn kill(cluster: &mut Cluster, victims: &[i32]) -> Result<()> {
    for id in victims {
        // One that ended by itself must not pass for one that was killed.
        ensure!(cluster.node(*id).is_running(), "node {id} ended by itself");
        cluster.node(*id).kill()?;
    }
    Ok(())
}

fn choose(
    cluster: &mut Cluster,
    load: &mut Load,
    victims: Victims,
    rng: &mut StdRng,
) -> Result<Vec<i32>> {
    let mut ids = cluster.others(&[]);
    ids.shuffle(rng);
    let partition = rng.random_range(0..PARTITIONS);
    let topic = load.topic().to_owned();
    match victims {
        Victims::Any => Ok(vec![ids[0]]),
        Victims::Two => Ok(vec![ids[0], ids[1]]),
        Victims::All => Ok(ids),
        Victims::Leader => load.run_until("somebody leads the partition", DEADLINE, |_| {
            let told = ids.iter().find_map(|id| leaders_now(cluster.node(*id), &topic, PARTITIONS));
            told.map(|leaders| leaders[partition]).filter(|id| *id > 0).map(|id| vec![id])
        }),
        Victims::Controller => load.run_until("somebody leads the catalog", DEADLINE, |_| {
            let told = ids.iter().find_map(|id| controller(cluster.node(*id)));
            told.map(|id| vec![id])
        }),
    }
}

fn controller(node: &Broker) -> Option<i32> {
    let id = cluster_status(node).ok()?["controller"].as_i64()?;
    i32::try_from(id).ok()
}
