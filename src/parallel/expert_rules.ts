/**
 * How work passes to experts that are divided over ranks: rows of tokens go to the ranks of their experts and come back.
 * Without a capacity as many go as chose each expert: counts are exchanged first. With one, all ranks exchange evenly.
 *
 * Ranks of a tensor group divide each expert by its width, and send the same tokens, each in an expert group of its own: their
 * results are terms of a sum, which is made of tokens rather than of rows. Where the tensor group is part of the expert group (`parallel.expert.no_tp`, isp), each of its ranks takes its share of the tokens instead, and finds their
 * places, their experts' room and the balance by itself.
 */
import { allReduce, allToAll } from "../graph/collectives.ts";
import type { Tensor } from "../graph/graph.ts";
import { scale } from "../graph/operators.ts";
import { type BoundaryAttributes, exchange, exchangeCounts, tableOffsets } from "../graph/moe_operators.ts";
import { replicated } from "./layout.ts";
import type { Rule } from "./rules.ts";
import type { Sharder, Use } from "./shard.ts";

/** Tables of what comes to a rank's experts, by sharding pass and counts: the exchanges of a layer share one. */
const tables = new WeakMap<Sharder, Map<Tensor, Tensor>>();
function tableOf(sharder: Sharder, count: Tensor): Tensor {
  const known = tables.get(sharder) ?? new Map<Tensor, Tensor>();
  tables.set(sharder, known);
  const table = known.get(count) ?? exchangeCounts(count, sharder.along("expert"));
  known.set(count, table);
  return table;
}

const boundary = (
  convert: (x: Tensor, count: Tensor, attributes: BoundaryAttributes, sharder: Sharder) => Tensor,
): Rule =>
(node, sharder) => {
  const held = sharder.expertTokens,
    [x, count] = node.inputs.map((input) => sharder.as(input, held)) as [Tensor, Tensor];
  const tensor = sharder.along("expert").size === 1
    ? sharder.apply(node, [x, count])[0]!
    : convert(x, count, node.attributes, sharder);
  return [{ tensor, held }];
};

/** Rows of tokens before they go are `T k`: those that come are at most so many of each of the expert group's ranks. */
function roomOf(rows: number, { choices }: BoundaryAttributes, count: Tensor, sharder: Sharder): number {
  const { size } = sharder.along("expert"), own = count.shape[0]! / size;
  const most = size * rows / choices * Math.min(choices, own);
  return sharder.loadBound === null ? most : Math.min(most, Math.ceil(rows * sharder.loadBound));
}

/** Rows on their way there, so that the way back knows how many there were. */
const sent = new WeakMap<Sharder, Map<Tensor, number>>();

export const toExperts = boundary((x, count, attributes, sharder) => {
  const along = sharder.along("expert");
  if (attributes.apart) return allToAll(x, { ...along, from: 1, to: 0 });
  const { axis, size } = along, rows = x.shape[0]!, room = roomOf(rows, attributes, count, sharder);
  sent.set(sharder, (sent.get(sharder) ?? new Map()).set(count, rows));
  return exchange(x, { count, table: tableOf(sharder, count) }, { axis, size, direction: "to experts", rows, room });
});

export const fromExperts = boundary((x, count, attributes, sharder) => {
  const along = sharder.along("expert");
  if (attributes.apart) return allToAll(x, { ...along, from: 0, to: 1 });
  const { axis, size } = along, rows = sent.get(sharder)!.get(count)!, room = x.shape[0]!;
  return exchange(x, { count, table: tableOf(sharder, count) }, { axis, size, direction: "from experts", rows, room });
});

export const expertOffsets = boundary((offset, count, { apart }, sharder) =>
  apart ? offset : tableOffsets(tableOf(sharder, count))
);

/** Weights are here as they lie, this rank's experts or its share of their width, or are gathered. */
export const expertLinear: Rule = (node, sharder) => {
  const held = sharder.expertTokens, [x, weight, offset] = node.inputs as [Tensor, Tensor, Tensor];
  const inputs = [sharder.as(x, held), sharder.gathered(sharder.part(weight)), sharder.as(offset, held)];
  return sharder.apply(node, inputs).map((tensor) => ({ tensor, held }));
};

/** All that is by tokens, or follows from them: rows, counts and offsets are those of the tokens that are here. */
export const byToken: Rule = (node, sharder) => {
  const held = sharder.expertTokens;
  return sharder.apply(node, node.inputs.map((input) => sharder.as(input, held))).map((tensor) => ({ tensor, held }));
};

/** Tokens for their experts. Where each rank has some of their width, it has a term of the tokens' gradient. */
export const toRows: Rule = (node, sharder) => {
  const held = sharder.expertTokens, [x, ...places] = node.inputs as [Tensor, ...Tensor[]];
  const inputs = [sharder.as(x, held, useOf(sharder)), ...places.map((place) => sharder.as(place, held))];
  return sharder.apply(node, inputs).map((tensor) => ({ tensor, held }));
};
const useOf = ({ expertsByWidth }: Sharder): Use => expertsByWidth ? "apart" : "alike";

/** Tokens with what their experts made of them, as they travel between blocks; a term of it, where they are divided by width. */
export const fromRows: Rule = (node, sharder) => {
  const held = sharder.expertTokens, [rows, row, slot, weight] = node.inputs as [Tensor, Tensor, Tensor, Tensor];
  const inputs = [
    ...[rows, row, slot].map((input) => sharder.as(input, held)),
    sharder.as(weight, held, useOf(sharder)),
  ];
  const made = sharder.expertsByWidth ? { kind: "term" } as const : held;
  return sharder.apply(node, inputs).map((tensor) => sharder.toStream(tensor, made));
};

/** The mean over the ranks that have other tokens. */
export const balance: Rule = (node, sharder) => {
  const held = sharder.expertTokens, [probability, choice, weight] = node.inputs as [Tensor, Tensor, Tensor];
  const given = sharder.as(weight, replicated()), along = sharder.along("tensor");
  const apart = held.kind === "split", share = apart ? scale(given, 1 / along.size) : given;
  const [loss, load] = sharder.apply(node, [sharder.as(probability, held), sharder.as(choice, held), share]) as [
    Tensor,
    Tensor,
  ];
  const mean = apart ? allReduce(scale(loss, 1 / along.size), along) : loss;
  return [{ tensor: mean, held: replicated() }, { tensor: load, held }];
};
