//! Training samples: which photograph, which crop, which degradation, by (seed, index) alone.
//!
//! Sample `i` of a run is the same whatever the number of workers and wherever the run was resumed.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use pixels::{
    Image,
    degrade::{Degradation, OutputSize, degrade},
    random::stream,
    resize::{Filter, scale},
};
use rand::RngExt;
use sha2::{Digest, Sha256};

use crate::{
    Error,
    config::{Data, Mix},
};

/// One training sample.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The clean crop.
    pub hq: Image,
    /// The degraded crop, of the same size; the clean one where nothing degrades.
    pub lq: Image,
    /// The photograph's caption, or nothing.
    pub caption: String,
    /// Words for what was done to it.
    pub descriptors: Vec<&'static str>,
}

/// The photographs of a folder and how samples are drawn from them.
#[derive(Debug)]
pub struct Photos {
    files: Vec<(PathBuf, String)>,
    data: Data,
    laws: Vec<(Degradation, f64)>,
    seed: u64,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    bytes: usize,
    pictures: HashMap<usize, Arc<Photo>>,
}

/// A decoded photograph, 8 bits a sample, to hold many.
#[derive(Debug)]
struct Photo {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Photos {
    /// Finds the pictures and captions of `data.images`.
    ///
    /// # Errors
    /// An unreadable or empty folder, an unknown degradation.
    pub fn open(data: &Data, seed: u64) -> Result<Self, Error> {
        let mut files = Vec::new();
        for path in pictures_under(&data.images)? {
            let caption = std::fs::read_to_string(path.with_extension("txt")).unwrap_or_default();
            files.push((path, caption.trim().to_owned()));
        }
        if files.is_empty() {
            return Err(Error::Input(format!(
                "{}: holds no pictures; give a folder of photographs",
                data.images.display()
            )));
        }
        let laws = data
            .degradations
            .iter()
            .map(law)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            files,
            data: data.clone(),
            laws,
            seed,
            cache: Mutex::default(),
        })
    }

    /// Captions of all photographs.
    pub fn captions(&self) -> Vec<String> {
        self.files
            .iter()
            .map(|(_, caption)| caption.clone())
            .collect()
    }

    /// SHA-256 over the names, sizes and contents of all photographs and captions, in order.
    ///
    /// # Errors
    /// A photograph that cannot be read.
    pub fn hash(&self) -> Result<String, Error> {
        let mut hash = Sha256::new();
        for (path, caption) in &self.files {
            let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
            hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            hash.update(bytes.len().to_le_bytes());
            hash.update(&bytes);
            hash.update(caption.as_bytes());
        }
        Ok(hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }

    /// Sample number `index`.
    ///
    /// # Errors
    /// A photograph that cannot be decoded.
    pub fn sample(&self, index: usize) -> Result<Sample, Error> {
        let mut rng = stream(self.seed, &format!("sample {index}"));
        let which = rng.random_range(0..self.files.len());
        let photo = self.photo(which)?;
        let size = self.data.crop_px;
        let [low, high] = self.data.reduce;
        let room = (photo.width.min(photo.height) as f64 / size as f64).max(1.0);
        let factor = (low.ln() + (high.ln() - low.ln()) * rng.random::<f64>())
            .exp()
            .min(room);
        let hq = crop(&photo, size, factor, &mut rng);
        let caption = if rng.random::<f64>() < self.data.null_text {
            ""
        } else {
            &self.files[which].1
        };
        let caption = caption.to_owned();
        let total: f64 = self.laws.iter().map(|(_, weight)| weight).sum();
        let mut at = rng.random::<f64>() * total;
        let law = self.laws.iter().find(|(_, weight)| {
            at -= weight;
            at < 0.0
        });
        let Some((law, _)) = law.or(self.laws.last()) else {
            return Ok(Sample {
                lq: hq.clone(),
                hq,
                caption,
                descriptors: vec![],
            });
        };
        let degraded = degrade(&hq, law, &mut rng, OutputSize::Input);
        Ok(Sample {
            hq,
            lq: degraded.image,
            caption,
            descriptors: degraded.descriptors,
        })
    }

    fn photo(&self, which: usize) -> Result<Arc<Photo>, Error> {
        if let Some(photo) = self
            .cache
            .lock()
            .expect("no panic while held")
            .pictures
            .get(&which)
        {
            return Ok(photo.clone());
        }
        let image = pixels::io::open(&self.files[which].0)?;
        let photo = Arc::new(Photo {
            width: image.width,
            height: image.height,
            rgb: image.to_u8(),
        });
        let mut cache = self.cache.lock().expect("no panic while held");
        if cache.bytes + photo.rgb.len() <= self.data.cache_mb << 20 {
            cache.bytes += photo.rgb.len();
            cache.pictures.insert(which, photo.clone());
        }
        Ok(photo)
    }
}

/// The pictures under `folder`, by name, sorted.
///
/// # Errors
/// An unreadable folder.
pub fn pictures_under(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|source| Error::io(&folder, source))? {
            let path = entry.map_err(|source| Error::io(&folder, source))?.path();
            if path.is_dir() {
                open.push(path);
            } else if pixels::io::is_picture_name(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn law(mix: &Mix) -> Result<(Degradation, f64), Error> {
    let law = match (&mix.preset, &mix.law) {
        (Some(name), None) => Degradation::preset(name)?,
        (None, Some(law)) => law.clone(),
        _ => {
            return Err(Error::Input(
                "data.degradations: each needs either preset or law; correct the configuration"
                    .into(),
            ));
        }
    };
    law.check()?;
    Ok((law, mix.weight))
}

/// A `size` x `size` crop of the photograph reduced by `factor`, mirrored half of the time.
fn crop(photo: &Photo, size: usize, factor: f64, rng: &mut impl RngExt) -> Image {
    let side = (size as f64 * factor).round() as usize;
    let (w, h) = (side.min(photo.width), side.min(photo.height));
    let left = rng.random_range(0..=photo.width - w);
    let top = rng.random_range(0..=photo.height - h);
    let mirror = rng.random::<f64>() < 0.5;
    let region = Image::from_fn(w, h, |c, y, x| {
        let x = if mirror { w - 1 - x } else { x };
        f32::from(photo.rgb[3 * ((top + y) * photo.width + left + x) + c]) / 255.0
    });
    scale(&region, size, size, Filter::CatmullRom)
}

/// Samples in order, made ahead by worker threads.
#[derive(Debug)]
pub struct Loader {
    ready: Receiver<(usize, Result<Sample, Error>)>,
    early: BTreeMap<usize, Result<Sample, Error>>,
    next: usize,
    _workers: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts workers at sample `first`.
    pub fn start(photos: Arc<Photos>, first: usize, ahead: usize) -> Self {
        let (send, ready) = sync_channel(ahead.max(1));
        let next = Arc::new(AtomicUsize::new(first));
        let worker = |_| {
            let (photos, next, send) = (photos.clone(), next.clone(), send.clone());
            std::thread::spawn(move || work(&photos, &next, &send))
        };
        let workers = (0..photos.data.workers.max(1)).map(worker).collect();
        Self {
            ready,
            early: BTreeMap::new(),
            next: first,
            _workers: workers,
        }
    }

    /// The next `n` samples.
    ///
    /// # Errors
    /// A photograph that cannot be decoded.
    pub fn batch(&mut self, n: usize) -> Result<Vec<Sample>, Error> {
        (0..n).map(|_| self.one()).collect()
    }

    fn one(&mut self) -> Result<Sample, Error> {
        let wanted = self.next;
        self.next += 1;
        loop {
            if let Some(sample) = self.early.remove(&wanted) {
                return sample;
            }
            let (index, sample) = self.ready.recv().map_err(|_| {
                Error::Input("the data workers stopped; report this as a bug".into())
            })?;
            self.early.insert(index, sample);
        }
    }
}

fn work(photos: &Photos, next: &AtomicUsize, send: &SyncSender<(usize, Result<Sample, Error>)>) {
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if send.send((index, photos.sample(index))).is_err() {
            return;
        }
    }
}
