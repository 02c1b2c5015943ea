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

/** The name most like another when none is near: the one that shares most words with it, then the fewest changes. */
export function mostSimilar(name: string, known: readonly string[]): string {
  const words = (text: string) => text.toLowerCase().split(/[_\W]+/).filter(Boolean);
  const alike = (a: string, b: string) => a.startsWith(b) || b.startsWith(a);
  const shared = (other: string) => words(name).filter((word) => words(other).some((one) => alike(word, one))).length;
  const distance = (other: string) => levenshteinDistance(name.slice(0, 200), other);
  return known.toSorted((a, b) => shared(b) - shared(a) || distance(a) - distance(b))[0];
}
