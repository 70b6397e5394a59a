//! Training by several ranks on one machine: the losses of one rank, and what a job does when a rank dies, is asked to stop, or
//! fails. Needs Open MPI's `mpirun`.

#![cfg(target_os = "linux")]

mod program;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use program::{
    said, text,
    toy::{config, model, photos, weights},
    works,
};

const VAE: &str = "prior/vae/diffusion_pytorch_model.safetensors";
const CHECKPOINT: &str = "checkpoint.safetensors";

/// `reclair train` by so many ranks; tests may run as root, in a container, on fewer cores than ranks.
fn mpirun(ranks: usize, config: &Path) -> Command {
    let mut command = Command::new("mpirun");
    command
        .args(["--oversubscribe", "--bind-to", "none", "-n"])
        .arg(ranks.to_string())
        .args([env!("CARGO_BIN_EXE_reclair"), "train", text(config)])
        .args(["--threads", "1"])
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_mpi_yield_when_idle", "1")
        .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    command
}

fn run(ranks: usize, config: &Path) -> Output {
    mpirun(ranks, config).output().expect("mpirun is installed")
}

fn succeeds(ranks: usize, config: &Path) {
    let output = run(ranks, config);
    assert!(output.status.success(), "{ranks}: {}", said(&output));
}

/// A job in the background, with what it says kept.
fn start(ranks: usize, config: &Path) -> Child {
    mpirun(ranks, config)
        .stderr(Stdio::piped())
        .spawn()
        .expect("mpirun is installed")
}

/// A folder with pictures and a model, and a run of the autoencoder with four samples in a step.
fn toy() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    photos(folder.path());
    let model = model(folder.path());
    (folder, model)
}

fn of_four(folder: &Path, name: &str, stage: &str, model: &Path, steps: usize) -> PathBuf {
    let path = config(folder, name, stage, model, steps, "");
    change(&path, "batch = 2", "batch = 4");
    path
}

fn change(config: &Path, from: &str, to: &str) {
    let toml = std::fs::read_to_string(config).expect("written");
    assert!(toml.contains(from), "{from}");
    std::fs::write(config, toml.replace(from, to)).expect("writes");
}

/// A number of each step's line, which must be there once and in order.
fn logged(run: &Path, key: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(run.join("log.jsonl")).expect("a log");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a whole line"));
    let mut values = Vec::new();
    for line in lines.filter(|line| line.get("loss").is_some()) {
        values.push(line[key].as_f64().expect("a number"));
        assert_eq!(line["step"].as_u64(), Some(values.len() as u64));
    }
    values
}

fn lines(run: &Path) -> usize {
    let log = std::fs::read(run.join("log.jsonl")).unwrap_or_default();
    log.iter().filter(|&&byte| byte == b'\n').count()
}

/// Waits until `happened`; the job must go on until then.
fn until(job: &mut Child, mut happened: impl FnMut() -> bool) {
    let started = Instant::now();
    while !happened() {
        assert!(job.try_wait().expect("a child").is_none(), "it ended");
        assert!(started.elapsed() < Duration::from_secs(120), "it hangs");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The process of a rank among the children of `mpirun`.
fn process_of(job: &Child, rank: usize) -> u32 {
    let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
    let parent = format!("PPid:\t{}", job.id());
    std::fs::read_dir("/proc")
        .expect("Linux")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .find(|pid: &u32| {
            let read = |file| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let (status, environment) = (read("status"), read("environ"));
            String::from_utf8_lossy(&status)
                .lines()
                .any(|line| line == parent)
                && environment
                    .split(|&byte| byte == 0)
                    .any(|is| is == wanted.as_bytes())
        })
        .expect("the rank")
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &process.to_string()])
        .status();
    assert!(sent.expect("kill is there").success());
}

/// Waits for the job's end; returns whether it went well, and what it said.
fn end(mut job: Child) -> (bool, String) {
    let started = Instant::now();
    while job.try_wait().expect("a child").is_none() {
        assert!(started.elapsed() < Duration::from_secs(60), "the job hangs");
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = job.wait_with_output().expect("ended");
    (output.status.success(), said(&output))
}

/// The largest relative difference.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference = |(a, b): (&f64, &f64)| (a - b).abs() / a.abs().max(b.abs());
    a.iter().zip(b).map(difference).fold(0.0, f64::max)
}

#[test]
fn any_number_of_ranks_gives_the_losses_of_one() {
    const STEPS: usize = 12;
    let (folder, model) = toy();
    let at = folder.path();
    let vae = of_four(at, "vae", "vae", &model, 2);
    works(&["train", text(&vae)]);
    let prior = at.join("vae/prior");
    let whole = at.join("joint-alone/prior");
    for (stage, model) in [("vae", &model), ("joint", &prior), ("adapter", &whole)] {
        let named = |name: &str| {
            let path = of_four(at, &format!("{stage}-{name}"), stage, model, STEPS);
            if stage == "adapter" {
                let toml = std::fs::read_to_string(&path).expect("written");
                std::fs::write(&path, toml + "[lora]\nrank = 2\nalpha = 2.0\n").expect("writes");
            }
            path
        };
        let alone = named("alone");
        works(&["train", text(&alone), "--threads", "1"]);
        // Three ranks have one, one and two samples.
        for ranks in [2, 3, 4] {
            let together = named(&format!("{ranks}"));
            succeeds(ranks, &together);
            let run = |name: &str| at.join(format!("{stage}-{name}"));
            for key in ["loss", "gradient_norm"] {
                let alone = logged(&run("alone"), key);
                let together = logged(&run(&format!("{ranks}")), key);
                let apart = apart(&alone, &together);
                assert_eq!(alone.len(), STEPS);
                assert!(apart < 1e-5, "{stage}, {ranks} ranks, {key}: {apart:e}");
            }
        }
    }
}

#[test]
fn the_same_ranks_give_the_same_bytes_and_another_number_goes_on() {
    let (folder, model) = toy();
    let at = folder.path();
    let [once, again, other] =
        ["once", "again", "other"].map(|name| of_four(at, name, "vae", &model, 6));
    succeeds(2, &once);
    succeeds(2, &again);
    assert!(weights(at, "once", CHECKPOINT) == weights(at, "again", CHECKPOINT));
    assert!(weights(at, "once", VAE) == weights(at, "again", VAE));
    let image = |run: &str| std::fs::read(at.join(run).join("grid-0000006.png")).expect("a grid");
    assert!(image("once") == image("again"));
    // Begun by two ranks, ended by three.
    let mut job = start(2, &other);
    until(&mut job, || lines(&at.join("other")) > 3);
    signal("TERM", process_of(&job, 0));
    let (well, said) = end(job);
    assert!(well, "{said}");
    succeeds(3, &other);
    let losses = |run: &str| logged(&at.join(run), "loss");
    assert!(apart(&losses("once"), &losses("other")) < 1e-5);
}

#[test]
fn a_killed_rank_ends_the_job_and_the_last_checkpoint_goes_on() {
    const STEPS: usize = 60;
    let (folder, model) = toy();
    let at = folder.path();
    let whole = of_four(at, "whole", "vae", &model, STEPS);
    succeeds(2, &whole);
    let killed = of_four(at, "killed", "vae", &model, STEPS);
    let run = at.join("killed");
    for (rank, enough) in [(1, 10), (0, 35)] {
        let mut job = start(2, &killed);
        until(&mut job, || lines(&run) > enough);
        let ranks = [0, 1].map(|rank| process_of(&job, rank));
        signal("KILL", ranks[rank]);
        let (well, said) = end(job);
        assert!(!well, "{said}");
        assert!(said.contains("signal 9"), "{said}");
        assert!(said.contains(&format!("rank {rank}")), "{said}");
        for process in ranks {
            assert!(!Path::new(&format!("/proc/{process}/exe")).exists());
        }
        assert!(logged(&run, "loss").len() < STEPS);
        assert!(run.join(CHECKPOINT).is_file() && !run.join(VAE).exists());
    }
    succeeds(2, &killed);
    assert!(weights(at, "whole", VAE) == weights(at, "killed", VAE));
    assert!(weights(at, "whole", CHECKPOINT) == weights(at, "killed", CHECKPOINT));
    assert_eq!(logged(&run, "loss"), logged(&at.join("whole"), "loss"));
}

#[test]
fn a_signal_to_any_rank_stops_all_after_the_step_with_a_checkpoint() {
    const STEPS: usize = 60;
    let (folder, model) = toy();
    let at = folder.path();
    let whole = of_four(at, "whole", "vae", &model, STEPS);
    succeeds(2, &whole);
    let stopped = of_four(at, "stopped", "vae", &model, STEPS);
    // None of the checkpoints that are due anyway.
    change(&stopped, "checkpoint = 1\n", "checkpoint = 1000\n");
    let run = at.join("stopped");
    for (rank, name, enough) in [(1, "INT", 10), (0, "TERM", 35)] {
        let mut job = start(2, &stopped);
        until(&mut job, || lines(&run) > enough);
        signal(name, process_of(&job, rank));
        let (well, said) = end(job);
        assert!(well, "{name}: {said}");
        assert_eq!(
            said.matches("stopped with a checkpoint").count(),
            1,
            "{said}"
        );
        assert!(run.join(CHECKPOINT).is_file());
    }
    succeeds(2, &stopped);
    assert!(weights(at, "whole", VAE) == weights(at, "stopped", VAE));
}

#[test]
fn what_goes_wrong_on_one_rank_or_on_all_is_said_and_ends_the_job() {
    let (folder, model) = toy();
    let at = folder.path();
    let fails = |ranks: usize, config: &Path| {
        let output = run(ranks, config);
        let said = said(&output);
        assert!(
            !output.status.success() && !said.contains("panicked"),
            "{said}"
        );
        said
    };
    let small = config(at, "small", "vae", &model, 4, "");
    assert!(fails(3, &small).contains("batch = 2 samples cannot be shared by 3 ranks"));
    let wild = of_four(at, "wild", "vae", &model, 30);
    change(&wild, "lr = 1e-3", "lr = 1e38");
    let said_it = fails(2, &wild);
    assert_eq!(said_it.matches("are no numbers").count(), 1, "{said_it}");
    assert!(said_it.contains("error: rank 0: step 2"), "{said_it}");
    assert!(at.join("wild").join(CHECKPOINT).is_file());
    change(
        &wild,
        "[every]",
        "[guard]\naction = \"skip\"\npatience = 3\n[every]",
    );
    let said_it = fails(2, &wild);
    assert!(said_it.contains("in a row"), "{said_it}");
    // Pictures that go away: whichever rank misses one first ends both.
    let gone = of_four(at, "gone", "vae", &model, 400);
    change(&gone, "crop_px = 32", "crop_px = 32\ncache_mb = 0");
    let mut job = start(2, &gone);
    until(&mut job, || lines(&at.join("gone")) > 5);
    std::fs::rename(at.join("photos"), at.join("away")).expect("renames");
    let (well, said_it) = end(job);
    assert!(!well && said_it.contains("error: rank "), "{said_it}");
    assert!(said_it.contains("No such file"), "{said_it}");
    assert!(at.join("gone").join(CHECKPOINT).is_file());
    std::fs::rename(at.join("away"), at.join("photos")).expect("renames");
    // A checkpoint that the first rank cannot write.
    let blocked = of_four(at, "blocked", "vae", &model, 40);
    std::fs::create_dir_all(at.join("blocked").join(CHECKPOINT)).expect("makes the folder");
    let said_it = fails(2, &blocked);
    assert!(said_it.contains("error: rank 0: "), "{said_it}");
    assert!(said_it.contains(CHECKPOINT), "{said_it}");
}
