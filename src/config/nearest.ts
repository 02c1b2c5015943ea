import { levenshteinDistance } from "@std/text";

/**
 * The name that a mistyped one most likely meant, or undefined when none is near: at most a third of its letters,
 * and always up to two, may differ.
 */
export function nearest(name: string, known: Iterable<string>): string | undefined {
  const allowed = Math.max(2, Math.floor(name.length / 3));
  let best: { name: string; distance: number } | undefined;
  for (const candidate of known) {
    const distance = levenshteinDistance(name.toLowerCase().slice(0, 200), candidate.toLowerCase());
    if (distance <= allowed && distance < (best?.distance ?? Infinity)) best = { name: candidate, distance };
  }
  return best?.name;
}
