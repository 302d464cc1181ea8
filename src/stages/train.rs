//! `sdrrl train`: LoRA, full fine-tuning or training from scratch on packed token shards (SDRRL, steps 7 and 8).
use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::{placement::Placement, rows::interrupted};
use crate::{
    data::{manifest::Manifest, token_shard::TokenShard, tokenizer::Tokenizer},
    device::Device,
    models::{
        config::Config,
        llama::Llama,
        lora::{Lora, LoraConfig},
        train_step::{TrainStep, Trainable},
        weights::resolve,
    },
    recipe::train::{Method, Normalize, TrainSettings},
    report::progress::duration,
    tensor::DType,
    train::{
        checkpoint,
        optimizer::OptimizerSettings,
        schedule::Schedule,
        trainer::{TrainEvent, TrainOutcome, TrainerSettings, train},
    },
};

/// Arguments of `train`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Model: a Hugging Face directory, a .gguf file or a name in the local cache; with --method scratch a directory with config.json
    /// and tokenizer.json
    #[arg(long)]
    pub model: String,
    /// Directory that `pack` wrote
    #[arg(long)]
    pub shards: PathBuf,
    /// Start from this PEFT adapter instead of a new one; its rank, alpha, kind and modules count, not --lora-*
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// Directory for the adapter or the model, and the logs
    #[arg(long)]
    pub out: PathBuf,
    /// How the weights are held and where it computes
    #[command(flatten)]
    pub placement: Placement,
    /// Discard the checkpoints of an earlier run with other settings
    #[arg(long)]
    pub restart: bool,
    /// How
    #[command(flatten)]
    pub settings: TrainSettings,
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    let model_path = resolve(&args.model)?;
    let mut inputs: Vec<(&str, &Path)> = vec![("model", &model_path), ("shards", &args.shards)];
    inputs.extend(args.adapter.iter().map(|dir| ("adapter", dir.as_path())));
    let mut identity = serde_json::to_value(&args.settings)?;
    identity["dtype"] = json!(args.placement.to_string());
    let manifest = Manifest::expected("train", &inputs, &identity)?;
    if manifest.is_done(&args.out)? {
        println!("train: unchanged, skipped");
        return Ok(());
    }
    if args.restart {
        checkpoint::clean(&args.out)?;
    }
    identity["inputs"] = json!(manifest.inputs);
    let shard = TokenShard::open(&args.shards.join("train.tokens"))?;
    let validation_path = args.shards.join("validation.tokens");
    let validation = if validation_path.exists() { Some(TokenShard::open(&validation_path)?) } else { None };
    let (model, trainable) = load(args, &model_path)?;
    let mut model = args.placement.place(model)?;
    let longest = (0..shard.len()).map(|i| shard.document_len(i)).max().unwrap_or(0);
    let room = args.settings.batch_tokens.min(shard.tokens().max(longest));
    let mut step = TrainStep::new(&model, trainable, room.max(longest))?;
    print_memory(&model, &step);
    let settings = trainer_settings(&args.settings, identity);
    let mut screen = Screen::new(&model, &step);
    let outcome = train(
        &mut model,
        &mut step,
        &shard,
        validation.as_ref(),
        &settings,
        &args.out,
        &interrupted,
        &mut |event| screen.show(event),
    )?;
    screen.end();
    if !outcome.finished {
        bail!(
            "interrupted after step {}; a checkpoint is in {}: run the same command again to go on",
            outcome.steps,
            args.out.display()
        );
    }
    export(args, &model, &step, &model_path)?;
    checkpoint::clean(&args.out)?;
    print_outcome(&outcome, &args.out);
    let best = outcome.best.map(|(loss, step)| json!({"loss": loss, "step": step}));
    manifest
        .finish(&args.out, json!({"steps": outcome.steps, "train-loss": outcome.train_loss, "best": best}))
}

fn load(args: &Args, path: &Path) -> Result<(Llama, Trainable)> {
    let s = &args.settings;
    ensure!(
        args.adapter.is_none() || s.method == Method::Lora,
        "--adapter starts LoRA training; it does not go with another --method"
    );
    if s.method == Method::Scratch {
        let config = Config::from_dir(path)?;
        return Ok((Llama::random(config, s.seed)?, Trainable::Full));
    }
    let dtype = if s.method == Method::Full { DType::F32 } else { args.placement.dtype };
    let mut model = Llama::load(path, dtype)?;
    if s.method == Method::Full {
        model.make_trainable()?;
        return Ok((model, Trainable::Full));
    }
    if let Some(dir) = &args.adapter {
        let lora = Lora::load(dir, &model)?;
        return Ok((model, Trainable::Lora(lora)));
    }
    let config = LoraConfig {
        r: s.lora_rank,
        alpha: s.lora_alpha,
        target_modules: s.lora_targets.clone(),
        use_rslora: s.rslora,
        use_dora: s.dora,
    };
    let lora = Lora::init(&model, config, s.seed)?;
    Ok((model, Trainable::Lora(lora)))
}

fn trainer_settings(s: &TrainSettings, identity: Value) -> TrainerSettings {
    let lr = s.lr.unwrap_or(match s.method {
        Method::Lora => 1e-4,
        Method::Full => 2e-5,
        Method::Scratch => 1e-3,
    });
    TrainerSettings {
        epochs: s.epochs,
        max_steps: s.max_steps,
        batch_documents: s.batch_documents,
        batch_tokens: s.batch_tokens,
        lr,
        schedule: Schedule { kind: s.schedule, warmup: 0, total: 0, min_ratio: s.min_lr_ratio },
        warmup_ratio: s.warmup_ratio,
        optimizer: OptimizerSettings {
            beta1: s.beta1,
            beta2: s.beta2,
            eps: s.eps,
            weight_decay: s.weight_decay,
            clip: s.clip,
            lora_plus_ratio: s.lora_plus_ratio,
        },
        per_sentence: s.normalize == Normalize::Sentences,
        eval_every: s.eval_every,
        patience: s.patience,
        min_delta: s.min_delta,
        checkpoint_every: s.checkpoint_every,
        seed: s.seed,
        identity,
    }
}

fn export(args: &Args, model: &Llama, step: &TrainStep, path: &Path) -> Result<()> {
    if let Some(lora) = step.adapter() {
        let base = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        return lora.to_device(&Device::Cpu)?.save(&args.out, &base);
    }
    model.to_device(&Device::Cpu)?.save_pretrained(&args.out, DType::F32, path.is_dir().then_some(path))?;
    if !path.is_dir() {
        Tokenizer::load(path)?.save(&args.out)?;
    }
    Ok(())
}

fn print_memory(model: &Llama, step: &TrainStep) {
    let trained: usize = step.params(model).iter().map(|p| p.value.len()).sum();
    let moments = ("moments".to_string(), trained * 8);
    println!("train: {} parameters, {trained} of them trained", model.config.parameters());
    let all: Vec<_> = step.memory().iter().chain([&moments]).collect();
    let mib = |bytes: usize| bytes as f64 / 1048576.0;
    let parts: Vec<String> = all.iter().map(|(name, bytes)| format!("{name} {:.0}", mib(*bytes))).collect();
    let total: usize = all.iter().map(|(_, b)| b).sum();
    println!("train: memory in MiB: {}, in all {:.0}", parts.join(", "), mib(total));
}

fn print_outcome(outcome: &TrainOutcome, out: &Path) {
    match outcome.best {
        Some((loss, step)) => {
            println!("train: best validation loss {loss:.4} after step {step}; written to {}", out.display())
        }
        None => println!(
            "train: last loss {:.4} after {} steps; written to {}",
            outcome.train_loss,
            outcome.steps,
            out.display()
        ),
    }
}

/// One line a step: rewritten in place on a terminal, now and then otherwise.
struct Screen {
    terminal: bool,
    /// Matrix work of a token, forward and backward, FLOP.
    flop_per_token: f64,
    seconds: f64,
    steps: u64,
    last: std::time::Instant,
    open: bool,
}

impl Screen {
    fn new(model: &Llama, step: &TrainStep) -> Screen {
        let matrices = (model.config.parameters()
            - if model.config.tie_word_embeddings {
                0
            } else {
                model.config.vocab_size * model.config.hidden_size
            }) as f64;
        let trained: usize = step.params(model).iter().map(|p| p.value.len()).sum();
        let flop_per_token = match step.adapter() {
            Some(_) => 4.0 * matrices + 6.0 * trained as f64,
            None => 6.0 * matrices,
        };
        let terminal = std::io::stderr().is_terminal();
        Screen {
            terminal,
            flop_per_token,
            seconds: 0.0,
            steps: 0,
            last: std::time::Instant::now(),
            open: false,
        }
    }

    fn show(&mut self, event: TrainEvent) {
        match event {
            TrainEvent::Step { step, total, loss, grad_norm, lr, tokens, seconds } => {
                self.seconds += seconds;
                self.steps += 1;
                let rate = tokens as f64 / seconds.max(1e-9);
                let left = (total - step) as f64 * self.seconds / self.steps as f64;
                let line = format!(
                    "step {step}/{total}  loss {loss:.4}  norm {grad_norm:.3}  lr {lr:.2e}  {rate:.0} tok/s  {:.1} GFLOP/s  {} left",
                    rate * self.flop_per_token / 1e9,
                    duration(left)
                );
                if self.terminal {
                    eprint!("\r\x1b[2K{line}");
                    self.open = true;
                } else if step == 1 || step == total || self.last.elapsed().as_secs() >= 10 {
                    eprintln!("{line}");
                    self.last = std::time::Instant::now();
                }
            }
            TrainEvent::Evaluation { step, loss, improved } => {
                self.end();
                eprintln!(
                    "step {step}: validation loss {loss:.4}{}",
                    if improved { ", the best so far" } else { "" }
                );
            }
            TrainEvent::Resumed { step } => eprintln!("train: goes on after step {step}"),
            TrainEvent::StoppedEarly { step } => {
                eprintln!("train: stopped early after step {step}: the validation loss no longer falls")
            }
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            eprintln!();
        }
    }
}
