/** The number of single-character insertions, deletions and replacements between two texts. */
export function levenshteinDistance(a: string, b: string): number;
