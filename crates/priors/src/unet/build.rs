//! The segments of a U-Net from its configuration.

use kernels::Padding;

use super::{Body, Segment, Skip, UnetConfig};
use crate::{
    Error,
    flow::Site,
    nn::{Bias, Conv2d, GroupNorm, Linear, Resnet, ResnetConfig, TransformerLayer},
    weights::Weights,
};

pub(super) struct Builder<'a> {
    config: &'a UnetConfig,
    w: &'a Weights,
    pub(super) segments: Vec<Segment>,
    pub(super) sites: Vec<Site>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(config: &'a UnetConfig, w: &'a Weights) -> Self {
        Self {
            config,
            w,
            segments: vec![],
            sites: vec![],
        }
    }

    pub(super) fn build(mut self) -> Result<(Vec<Segment>, Vec<Site>), Error> {
        let skips = self.down()?;
        self.up(skips)?;
        Ok((self.segments, self.sites))
    }

    /// The way down and the middle; returns the channels of each skip.
    pub(super) fn down(&mut self) -> Result<Vec<usize>, Error> {
        let levels = self.config.levels();
        let layers = self.config.layers();
        let last = levels.len() - 1;
        let mut c = levels[0].channels;
        let mut skips = vec![c];
        for (i, level) in levels.iter().enumerate() {
            let name = format!("down_blocks.{i}");
            for j in 0..layers {
                self.resnet(
                    &format!("{name}.resnets.{j}"),
                    c,
                    level.channels,
                    Body::Resnet,
                )?;
                c = level.channels;
                self.transformer(
                    &format!("{name}.attentions.{j}"),
                    c,
                    level.transformer_layers,
                    level.heads,
                )?;
                self.keep();
                skips.push(c);
            }
            if i < last {
                let path = format!("{name}.downsamplers.0");
                let conv = Conv2d::down(&self.w.at(format!("{path}.conv")), c, Padding::same(1))?;
                self.push(path, Body::Down(conv));
                self.keep();
                skips.push(c);
            }
            self.site(name, c, 1 << (i + 1).min(last));
        }
        self.resnet("mid_block.resnets.0", c, c, Body::Resnet)?;
        self.transformer(
            "mid_block.attentions.0",
            c,
            self.config.mid_layers(),
            levels[last].heads,
        )?;
        self.resnet("mid_block.resnets.1", c, c, Body::Resnet)?;
        self.site("mid_block".into(), c, 1 << last);
        Ok(skips)
    }

    /// The way up, where each ResNet takes a skip.
    fn up(&mut self, mut skips: Vec<usize>) -> Result<(), Error> {
        let levels = self.config.levels();
        let layers = self.config.layers();
        let last = levels.len() - 1;
        let mut c = levels[last].channels;
        for (i, level) in levels.iter().rev().enumerate() {
            let name = format!("up_blocks.{i}");
            for j in 0..=layers {
                let c_in = c + skips.pop().expect("one skip for each ResNet");
                self.resnet(
                    &format!("{name}.resnets.{j}"),
                    c_in,
                    level.channels,
                    Body::UpResnet,
                )?;
                c = level.channels;
                self.transformer(
                    &format!("{name}.attentions.{j}"),
                    c,
                    level.transformer_layers,
                    level.heads,
                )?;
            }
            if i < last {
                let path = format!("{name}.upsamplers.0");
                let conv = Conv2d::new(&self.w.at(format!("{path}.conv")), c, c, 3)?;
                self.push(path, Body::Up(conv));
            }
            self.site(name, c, 1 << (last - i).saturating_sub(1));
        }
        Ok(())
    }

    fn push(&mut self, name: String, body: Body) {
        self.segments.push(Segment {
            name,
            body,
            skip: Skip::Pass,
        });
    }

    fn keep(&mut self) {
        self.segments.last_mut().expect("a segment was pushed").skip = Skip::Keep;
    }

    fn site(&mut self, name: String, channels: usize, downscale: usize) {
        let (block, segment) = (self.sites.len(), self.segments.len() - 1);
        self.sites.push(Site {
            block,
            segment,
            name,
            channels,
            downscale,
        });
    }

    fn resnet(
        &mut self,
        path: &str,
        c_in: usize,
        c_out: usize,
        body: fn(Resnet) -> Body,
    ) -> Result<(), Error> {
        let config = ResnetConfig {
            c_in,
            c_out,
            d_emb: Some(self.config.d_emb()),
            groups: self.config.norm_num_groups,
            eps: self.config.norm_eps,
        };
        let resnet = Resnet::new(&self.w.at(path), config)?;
        self.push(path.to_owned(), body(resnet));
        Ok(())
    }

    fn transformer(
        &mut self,
        path: &str,
        c: usize,
        layers: usize,
        heads: usize,
    ) -> Result<(), Error> {
        let w = self.w.at(path);
        for i in 0..layers {
            let enter = || -> Result<(GroupNorm, Linear), Error> {
                let norm = GroupNorm::new(&w.at("norm"), self.config.norm_num_groups, c, 1e-6)?;
                Ok((norm, Linear::new(&w.at("proj_in"), c, c, Bias::With)?))
            };
            let leave = || Linear::new(&w.at("proj_out"), c, c, Bias::With);
            let layer_w = w.at(format!("transformer_blocks.{i}"));
            let body = Body::Transformer {
                enter: (i == 0).then(enter).transpose()?,
                layer: Box::new(TransformerLayer::new(
                    &layer_w,
                    c,
                    self.config.cross_attention_dim,
                    heads,
                )?),
                leave: (i + 1 == layers).then(leave).transpose()?,
            };
            self.push(format!("{path}.transformer_blocks.{i}"), body);
        }
        Ok(())
    }
}
