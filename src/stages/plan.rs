//! `sdrrl plan`: the time, links and memory of training on GPUs that are not at hand.
use anyhow::{Result, bail, ensure};
use serde_json::json;

use crate::{
    bench::{
        models,
        plan::{
            Answer, Question,
            card::{Card, Rates},
            network::Ranks,
        },
    },
    error::Error,
    models::{
        transformer::{config::Config, lora_config::LoraConfig},
        weights::{WeightSource, resolve},
    },
    report::{
        out::{note, say, say_text},
        table::{Cell, Table, use_colour},
    },
    train::shares::Shard,
};

/// Arguments of `plan`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The model: a Hugging Face directory (config.json is enough), a .gguf file, or a name in the local Hugging Face cache
    #[arg(long, conflicts_with = "shape")]
    pub model: Option<String>,
    /// Or a well-known shape: smollm2-135m, llama-1b or llama2-7b
    #[arg(long)]
    pub shape: Option<String>,
    /// GPUs, one rank each, in whole machines; smaller numbers are shown beside it
    #[arg(long, default_value_t = 8)]
    pub gpus: usize,
    /// GPUs in one machine
    #[arg(long, default_value_t = 8, value_name = "GPUS")]
    pub per_node: usize,
    /// Kind of GPU: a100, h100, h200, l40s, rtx-4090 or rtx-5090
    #[arg(long, default_value = "h100", value_parser = str::parse::<Card>)]
    pub gpu: Card,
    /// Documents of a micro-batch, on each GPU
    #[arg(long, default_value_t = 8)]
    pub documents: usize,
    /// Tokens of a document
    #[arg(long, default_value_t = 2048)]
    pub length: usize,
    /// Micro-batches of a step, on each GPU
    #[arg(long, default_value_t = 1)]
    pub micro_batches: usize,
    /// Train all weights instead of adapters
    #[arg(long)]
    pub full: bool,
    /// Rank of adapters on all linears
    #[arg(long, default_value_t = 16, conflicts_with = "full")]
    pub lora_rank: usize,
    /// Keep in parts, one on each GPU, as train's option of that name does (of all weights, `sdrrl train` shards the optimizer's state alone)
    #[arg(long, value_enum, default_value_t)]
    pub shard: Shard,
    /// Send gradients as bf16 (train's --reduce-dtype bf16)
    #[arg(long)]
    pub bf16_sums: bool,
    /// Sum gradients while the backward pass still runs, as `sdrrl train` does unless --reduce is fixed
    #[arg(long)]
    pub overlap: bool,
    /// Rates to reckon with
    #[command(flatten)]
    pub rates: Own,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Rates that replace the assumed ones: what is reached, not what a data sheet states.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Rates that are reached [default: a share of the data sheet's]")]
pub struct Own {
    /// Large products, TFLOP/s
    #[arg(long, value_name = "TFLOPS")]
    pub products: Option<f64>,
    /// Attention, TFLOP/s; of the backward pass it is taken to be 0.87 of this
    #[arg(long, value_name = "TFLOPS")]
    pub attention: Option<f64>,
    /// The GPU's memory, GB/s
    #[arg(long, value_name = "GBPS")]
    pub bandwidth: Option<f64>,
    /// Size of the GPU's memory, GiB
    #[arg(long, value_name = "GIB")]
    pub memory: Option<f64>,
    /// From a GPU to the others in its machine, GB/s and direction
    #[arg(long, value_name = "GBPS")]
    pub link: Option<f64>,
    /// From a GPU to other machines, GB/s and direction [default: 40, of 400 Gbit/s InfiniBand]
    #[arg(long, value_name = "GBPS")]
    pub network: Option<f64>,
    /// Of one message, microseconds [default: 10]
    #[arg(long, value_name = "MICROSECONDS")]
    pub latency: Option<f64>,
}

impl Own {
    fn rates(&self, card: Card) -> Rates {
        let mut rates = Rates::assumed(card);
        let gib = (1u64 << 30) as f64;
        for (given, unit, rate) in [
            (self.products, 1e12, &mut rates.products),
            (self.attention, 1e12, &mut rates.attention),
            (self.attention, 0.87e12, &mut rates.attention_backward),
            (self.bandwidth, 1e9, &mut rates.bandwidth),
            (self.memory, gib, &mut rates.memory),
            (self.link, 1e9, &mut rates.link),
            (self.network, 1e9, &mut rates.network),
            (self.latency, 1e-6, &mut rates.latency),
        ] {
            let Some(given) = given else { continue };
            *rate = given * unit;
        }
        rates
    }
}

/// Prints the plan.
pub fn run(args: &Args) -> Result<()> {
    let whole =
        || format!("--gpus {}: whole machines of {} (--per-node) were expected", args.gpus, args.per_node);
    let ranks = |all| Ranks { all, per_node: args.per_node };
    ensure!(ranks(args.gpus).are_whole(), Error::setting("gpus", whole()));
    let frozen = "shard weights parts a frozen base, and goes with adapters: leave --full out, or use --shard optimizer";
    ensure!(!args.full || args.shard != Shard::Weights, Error::setting("shard", frozen.to_string()));
    let config = match (&args.model, &args.shape) {
        (Some(model), _) => config_of(model)?,
        (None, Some(shape)) => models::config(shape)?,
        (None, None) => bail!(Error::setting("model", "plan needs --model or --shape".to_string())),
    };
    let spec = config.spec()?;
    spec.check_reckoned()?;
    let most = config.max_position_embeddings;
    if args.length > most {
        note!(
            "plan: WARNING: documents of {} tokens (--length) are longer than the {most} positions of the model, which was made for none of that length",
            args.length
        );
    }
    let question = Question {
        spec,
        documents: args.documents,
        length: args.length,
        micro_batches: args.micro_batches,
        lora: (!args.full).then(|| LoraConfig { r: args.lora_rank, ..LoraConfig::default() }),
        shard: args.shard,
        gradient_bytes: if args.bf16_sums { 2 } else { 4 },
        overlap: args.overlap,
        rates: args.rates.rates(args.gpu),
    };
    let smaller = (0..usize::BITS).map(|power| 1 << power).take_while(|n| *n < args.gpus);
    let mut numbers: Vec<usize> = smaller.filter(|&n| ranks(n).are_whole()).collect();
    numbers.push(args.gpus);
    let answers: Vec<Answer> = numbers.iter().map(|&n| question.answer(ranks(n))).collect::<Result<_>>()?;
    if args.json {
        say!(
            "{:#}",
            json!({ "model": args.model, "shape": args.shape, "gpu": args.gpu.name, "plans": answers })
        );
        return Ok(());
    }
    print(args, &question, &answers);
    Ok(())
}

/// From what there is of the model: its configuration is enough.
fn config_of(model: &str) -> Result<Config> {
    let path = resolve(model)?;
    if path.is_dir() { Config::from_dir(&path) } else { Ok(WeightSource::open(&path)?.0) }
}

fn print(args: &Args, question: &Question, answers: &[Answer]) {
    let rates = &question.rates;
    say!(
        "plan: {} parameters; {} documents of {} tokens on each {}, {}; a calculation, nothing was run",
        question.spec.parameters(),
        args.documents * args.micro_batches,
        args.length,
        args.gpu.name,
        if args.full { "all weights trained".into() } else { format!("adapters of rank {}", args.lora_rank) }
    );
    say!(
        "taken to be reached: products {:.0} TFLOP/s, attention {:.0} and {:.0}, memory {:.0} GB/s, link {:.0} GB/s, network {:.0} GB/s, {:.0} us a message",
        rates.products / 1e12,
        rates.attention / 1e12,
        rates.attention_backward / 1e12,
        rates.bandwidth / 1e9,
        rates.link / 1e9,
        rates.network / 1e9,
        rates.latency * 1e6
    );
    let Some(last) = answers.last() else { return };
    say_text!("{}", scaling(answers).to_text(use_colour()));
    let mut parts = Table::new(&["on one of them", "ms"]);
    for (name, seconds) in &last.parts {
        parts.push(vec![Cell::Text(name.to_string()), Cell::Number(seconds * 1e3, 1)]);
    }
    say_text!("{}", parts.to_text(use_colour()));
    let mib = |bytes: f64| bytes / 1048576.0;
    let memory: Vec<String> =
        last.memory.iter().map(|(what, bytes)| format!("{what} {:.0}", mib(*bytes))).collect();
    let (needed, there) = (last.memory_bytes(), rates.memory);
    say!(
        "memory in MiB of each: {}, in all {:.0} of {:.0}{}",
        memory.join(", "),
        mib(needed),
        mib(there),
        if needed > there { ": it does not fit" } else { "" }
    );
}

/// A row for each number of GPUs; the first is what the others are measured by.
fn scaling(answers: &[Answer]) -> Table {
    let alone = answers.first().map_or(f64::NAN, |a| a.tokens_per_second / a.ranks as f64);
    let mut table = Table::new(&[
        "GPUs",
        "step, ms",
        "waiting, ms",
        "sent, MB",
        "tokens/s",
        "scaling, %",
        "useful, TFLOP/s",
    ]);
    for a in answers {
        let scaling = a.tokens_per_second / (a.ranks as f64 * alone);
        let numbers = [
            (a.ranks as f64, 0),
            (a.step_seconds * 1e3, 1),
            (a.waiting_seconds * 1e3, 1),
            (a.sent_bytes / 1e6, 0),
            (a.tokens_per_second, 0),
            (100.0 * scaling, 1),
            (a.useful_flops / 1e12, 0),
        ];
        table.push(numbers.map(|(x, decimals)| Cell::Number(x, decimals)).into());
    }
    table
}
