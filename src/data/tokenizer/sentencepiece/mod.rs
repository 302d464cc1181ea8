//! `sentencepiece.bpe.model`: SentencePiece's protobuf (sentencepiece_model.proto), rebuilt as the tokenizer.json that transformers makes of it.
pub(super) mod charsmap;
mod pieces;
mod proto;

use std::{collections::HashMap, path::Path};

use crate::data::files::FileContext;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

pub use self::pieces::Pieces;
use super::Tokenizer;

/// How a model numbers SentencePiece's pieces: `<s> <pad> </s> <unk>`, then the pieces after the first three, then the layout's own tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdLayout {
    /// NLLB-200: 202 language codes and `<mask>` follow.
    Nllb,
    /// XLM-RoBERTa: `<mask>` follows.
    XlmRoberta,
}

/// The languages of NLLB-200 in the order of their ids.
pub const NLLB_CODES: &str = "ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab arb_Arab ars_Arab ary_Arab arz_Arab \
     asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva bjn_Arab \
     bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn \
     dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn ewe_Latn fao_Latn pes_Arab fij_Latn fin_Latn fon_Latn \
     fra_Latn fur_Latn fuv_Latn gla_Latn gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn \
     hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab \
     kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn kea_Latn khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kon_Latn kor_Hang \
     kmr_Latn lao_Laoo lvs_Latn lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn lua_Latn lug_Latn luo_Latn lus_Latn \
     mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn mkd_Cyrl plt_Latn mlt_Latn mni_Beng khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr \
     nld_Latn nno_Latn nob_Latn npi_Deva nso_Latn nus_Latn nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn \
     por_Latn prs_Arab pbt_Arab quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng scn_Latn shn_Mymr sin_Sinh slk_Latn \
     slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn \
     szl_Latn tam_Taml tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn tso_Latn tuk_Latn \
     tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn xho_Latn \
     ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zul_Latn";

const FIRST: [&str; 4] = ["<s>", "<pad>", "</s>", "<unk>"];

/// The name of the file in a model's directory.
pub const FILE: &str = "sentencepiece.bpe.model";

impl Tokenizer {
    /// From a SentencePiece file (unigram or BPE); errors name the file.
    pub fn from_sentencepiece(path: &Path, layout: IdLayout) -> Result<Tokenizer> {
        let bytes = std::fs::read(path).reading(path)?;
        build(&bytes, layout)
            .with_context(|| format!("{} is not a usable SentencePiece model", path.display()))
    }
}

/// The SentencePiece model of a Hugging Face directory, laid out as the model that config.json describes.
pub(super) fn load(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join("config.json");
    let text = crate::data::json::read_text(&path).reading(&path)?;
    let config: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let layout = match config["model_type"].as_str().unwrap_or("absent") {
        "m2m_100" => IdLayout::Nllb,
        "xlm-roberta" | "xlm-roberta-xl" => IdLayout::XlmRoberta,
        other => bail!(
            "{FILE} of a model of type {other}: those of m2m_100 and xlm-roberta can be read, others need tokenizer.json"
        ),
    };
    Tokenizer::from_sentencepiece(&dir.join(FILE), layout)
}

/// Pieces that a model may have; NLLB's has 256 thousand.
const MOST_PIECES: usize = 350_000;

/// From the file's bytes.
pub fn build(bytes: &[u8], layout: IdLayout) -> Result<Tokenizer> {
    let model = proto::Model::parse(bytes)?;
    let pieces = model.pieces.len();
    ensure!(pieces > 3 && pieces <= MOST_PIECES, "it has {pieces} pieces; up to {MOST_PIECES} are read");
    let own: Vec<&str> = match layout {
        IdLayout::Nllb => NLLB_CODES.split_whitespace().chain(["<mask>"]).collect(),
        IdLayout::XlmRoberta => vec!["<mask>"],
    };
    let body = &model.pieces[3..];
    let mut tokens: Vec<(&str, f32)> = FIRST.iter().map(|t| (*t, 0.0)).collect();
    tokens.extend(body.iter().map(|p| (p.text.as_str(), p.score)));
    let first_own = tokens.len();
    tokens.extend(own.iter().map(|t| (*t, 0.0)));
    let special = (0..4).chain(first_own..tokens.len());
    let added: Vec<Value> = special
        .map(|id| {
            let mask = tokens[id].0 == "<mask>";
            json!({"id": id, "content": tokens[id].0, "single_word": false, "lstrip": mask, "rstrip": false,
                   "normalized": mask && layout == IdLayout::Nllb, "special": true})
        })
        .collect();
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let pre_tokenizer = match layout {
        IdLayout::Nllb => metaspace.clone(),
        IdLayout::XlmRoberta => {
            json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]})
        }
    };
    let post_processor = match layout {
        // The language codes stand around the text, and which they are is said with each text.
        IdLayout::Nllb => Value::Null,
        IdLayout::XlmRoberta => template(),
    };
    let json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer(&model, layout)?, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": metaspace,
        "model": algorithm(&model, &tokens, &tokens[..first_own])?});
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>",
        "add_bos_token": layout == IdLayout::XlmRoberta});
    Tokenizer::new(json, config)
}

fn normalizer(model: &proto::Model, layout: IdLayout) -> Result<Value> {
    if model.charsmap.is_empty() {
        return Ok(Value::Null);
    }
    charsmap::Charsmap::parse(&model.charsmap).context("its character map (precompiled_charsmap)")?;
    let map = json!({"type": "Precompiled", "precompiled_charsmap": charsmap::base64(&model.charsmap)});
    if layout == IdLayout::XlmRoberta {
        return Ok(map);
    }
    let spaces = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
    Ok(json!({"type": "Sequence", "normalizers": [map, spaces]}))
}

fn template() -> Value {
    let special = |t: &str| json!({"SpecialToken": {"id": t, "type_id": 0}});
    let text = |t: &str| json!({"Sequence": {"id": t, "type_id": 0}});
    let (s, e) = (special("<s>"), special("</s>"));
    json!({"type": "TemplateProcessing", "single": [s, text("A"), e], "pair": [s, text("A"), e, e, text("B"), e],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}})
}

/// `tokens` by id; `known` are those that text can give.
fn algorithm(model: &proto::Model, tokens: &[(&str, f32)], known: &[(&str, f32)]) -> Result<Value> {
    match model.kind {
        proto::UNIGRAM => {
            let vocab: Vec<Value> = tokens.iter().map(|(t, score)| json!([t, score])).collect();
            Ok(json!({"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": false}))
        }
        proto::BPE => {
            let vocab: Map<String, Value> =
                tokens.iter().enumerate().map(|(id, (t, _))| (t.to_string(), json!(id))).collect();
            Ok(
                json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": merges(known)}),
            )
        }
        other => bail!("its model type is {other}; 1 (unigram) and 2 (BPE) can be read"),
    }
}

/// SentencePiece merges whichever neighbours form the best-scored piece: the pairs of every piece, best piece first.
fn merges(known: &[(&str, f32)]) -> Vec<Value> {
    let ids: HashMap<&str, usize> =
        known.iter().enumerate().skip(FIRST.len()).map(|(i, t)| (t.0, i)).collect();
    let mut pairs: Vec<(f32, usize, usize)> = vec![];
    for (token, score) in known.iter().skip(FIRST.len()) {
        let mut own: Vec<(usize, usize)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((*ids.get(&token[..at])?, *ids.get(&token[at..])?)))
            .collect();
        own.sort();
        pairs.extend(own.into_iter().map(|(a, b)| (*score, a, b)));
    }
    pairs.sort_by(|x, y| y.0.total_cmp(&x.0));
    pairs.iter().map(|&(_, a, b)| json!([known[a].0, known[b].0])).collect()
}
