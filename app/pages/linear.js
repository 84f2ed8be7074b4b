// The mathematics of the map and of ranks. Matrices are arrays of rows.

/**
 * Principal components of the photos, from their similarities: the similarity of a space is a dot product of
 * (centred or scaled) vectors, so the doubly centred matrix is their Gram matrix. The same as classical
 * multidimensional scaling.
 *
 * @param {number[][]} similarities [n, n], symmetric.
 * @returns {{points: number[][], share: number, shares: number[]}} [n, 2] coordinates, and the share of the variance
 *   they show, together and each.
 */
export function principal(similarities) {
  const { values, vectors } = symmetricEigen(centred(similarities));
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
  const positive = values.map((value) => Math.max(0, value)); // below zero is rounding
  const total = positive.reduce((sum, value) => sum + value, 0);
  const axes = order.slice(0, 2);
  const points = similarities.map((_, row) =>
    [0, 1].map((k) => (k < axes.length ? Math.sqrt(positive[axes[k]]) * vectors[row][axes[k]] : 0)),
  );
  const shares = axes.map((axis) => (total > 0 ? positive[axis] / total : 0));
  return { points: oriented(points), share: shares.reduce((sum, s) => sum + s, 0), shares };
}

function centred(matrix) {
  const n = matrix.length;
  const means = matrix.map((row) => row.reduce((sum, value) => sum + value, 0) / n);
  const all = means.reduce((sum, value) => sum + value, 0) / n;
  return matrix.map((row, i) => row.map((value, j) => value - means[i] - means[j] + all));
}

/** An axis has no sign of its own: its farthest point is made positive, so a map is always drawn the same. */
function oriented(points) {
  const signs = [0, 1].map((k) => {
    const far = points.reduce((best, p) => (Math.abs(p[k]) > Math.abs(best) + 1e-9 ? p[k] : best), 0);
    return far < 0 ? -1 : 1;
  });
  return points.map((point) => point.map((value, k) => value * signs[k]));
}

/** Eigenvalues and eigenvectors (columns) of a symmetric matrix, by Jacobi's rotations. */
export function symmetricEigen(matrix) {
  const n = matrix.length;
  const a = matrix.map((row) => [...row]);
  const v = a.map((_, i) => a.map((_, j) => (i === j ? 1 : 0)));
  const scale = Math.max(...a.flat().map(Math.abs), Number.MIN_VALUE);
  for (let sweep = 0; sweep < 60; sweep += 1) {
    let off = 0;
    for (let p = 0; p < n; p += 1) for (let q = p + 1; q < n; q += 1) off = Math.max(off, Math.abs(a[p][q]));
    if (off <= 1e-14 * scale) break;
    for (let p = 0; p < n; p += 1) {
      for (let q = p + 1; q < n; q += 1) if (a[p][q] !== 0) rotate(a, v, p, q);
    }
  }
  return { values: a.map((row, i) => row[i]), vectors: v };
}

function rotate(a, v, p, q) {
  const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
  const t = (theta >= 0 ? 1 : -1) / (Math.abs(theta) + Math.hypot(theta, 1));
  const c = 1 / Math.hypot(t, 1);
  const s = t * c;
  for (let k = 0; k < a.length; k += 1) {
    const [kp, kq] = [a[k][p], a[k][q]];
    [a[k][p], a[k][q]] = [c * kp - s * kq, s * kp + c * kq];
  }
  for (let k = 0; k < a.length; k += 1) {
    const [pk, qk] = [a[p][k], a[q][k]];
    [a[p][k], a[q][k]] = [c * pk - s * qk, s * pk + c * qk];
    const [kp, kq] = [v[k][p], v[k][q]];
    [v[k][p], v[k][q]] = [c * kp - s * kq, s * kp + c * kq];
  }
}

/** Centred points [n, 2] at the size where their mean squared distance from the middle is 1. */
export function unitSize(points) {
  const mean = points.reduce((sum, [x, y]) => sum + x * x + y * y, 0) / points.length;
  const scale = mean > 0 ? 1 / Math.sqrt(mean) : 0;
  return points.map(([x, y]) => [x * scale, y * scale]);
}

/** Points [n, 2] turned, and mirrored if that is nearer, onto others (orthogonal Procrustes in the plane). */
export function turnedOnto(points, target) {
  let [dot, cross, mirroredDot, mirroredCross] = [0, 0, 0, 0];
  points.forEach(([x, y], i) => {
    const [u, w] = target[i];
    dot += x * u + y * w;
    cross += x * w - y * u;
    mirroredDot += x * u - y * w;
    mirroredCross += x * w + y * u;
  });
  const mirror = Math.hypot(mirroredDot, mirroredCross) > Math.hypot(dot, cross) + 1e-12;
  const angle = mirror ? Math.atan2(mirroredCross, mirroredDot) : Math.atan2(cross, dot);
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return points.map(([x, y0]) => {
    const y = mirror ? -y0 : y0;
    return [c * x - s * y, s * x + c * y];
  });
}

/** Ranks from 1 for the largest; equal values share the mean of theirs. */
export function ranks(values) {
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
  const out = new Array(values.length);
  for (let start = 0; start < order.length; ) {
    let end = start;
    while (end < order.length && values[order[end]] === values[order[start]]) end += 1;
    for (let k = start; k < end; k += 1) out[order[k]] = (start + 1 + end) / 2;
    start = end;
  }
  return out;
}

/** Pearson's correlation, 0 where one side is constant; of ranks it is Spearman's. */
export function correlation(a, b) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [ma, mb] = [mean(a), mean(b)];
  let [ab, aa, bb] = [0, 0, 0];
  a.forEach((value, i) => {
    ab += (value - ma) * (b[i] - mb);
    aa += (value - ma) ** 2;
    bb += (b[i] - mb) ** 2;
  });
  return aa > 0 && bb > 0 ? ab / Math.sqrt(aa * bb) : 0;
}
