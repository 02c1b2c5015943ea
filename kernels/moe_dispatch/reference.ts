/** Places for tokens with experts, on the host: the oracle of the kernel beside this file. */
import type { HostArray } from "../kernel.ts";
import { none } from "../moe_router/reference.ts";
import type { DispatchOptions } from "./mod.ts";

/** choice, [priority] → slot, row, count, offset */
export function dispatch(options: DispatchOptions, views: readonly HostArray[]): void {
  const { tokens, experts, choices, capacity, order, byPriority } = options;
  const choice = views[0], priority = byPriority ? views[1] : undefined;
  const [slot, row, count, offset] = views.slice(byPriority ? 2 : 1);
  const entries = Array.from(
    { length: tokens * choices },
    (_, p) => order === "token" ? p : p % tokens * choices + Math.floor(p / tokens),
  );
  slot.fill(none);
  row.fill(none);
  let first = 0;
  for (let e = 0; e < experts; e++) {
    let own = entries.filter((at) => choice[at] === e);
    count[e] = own.length;
    offset[e] = first;
    if (capacity !== undefined) {
      if (priority) {
        const of = (at: number) => priority[Math.floor(at / choices) * experts + e];
        const best = new Set(
          [...own].sort((a, b) => of(b) - of(a) || own.indexOf(a) - own.indexOf(b)).slice(0, capacity),
        );
        own = own.filter((at) => best.has(at));
      } else own = own.slice(0, capacity);
    }
    own.forEach((at, position) => {
      slot[at] = first + position;
      row[first + position] = at;
    });
    first += capacity ?? own.length;
  }
  offset[experts] = first;
}

/** table → offset */
export function tableOffsets(experts: number, [table, offset]: readonly HostArray[]): void {
  offset[0] = 0;
  for (let e = 0; e < experts; e++) {
    offset[e + 1] = offset[e];
    for (let at = e; at < table.length; at += experts) offset[e + 1] += table[at];
  }
}
