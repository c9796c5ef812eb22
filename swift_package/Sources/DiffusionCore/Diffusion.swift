import Foundation

/// The arithmetic of diffusion, elementwise and in place.
///
/// Coefficients are computed in double precision and rounded once. Operations run in the same order as
/// in `mdm_apple/diffusion/arithmetic.py`, so that both sides round alike. Sources: Ho et al. 2020
/// (arXiv:2006.11239), Song et al. 2021 (arXiv:2010.02502), Salimans & Ho 2022 (arXiv:2202.00512),
/// Lu et al. 2022 (arXiv:2211.01095), Ho & Salimans 2022 (arXiv:2207.12598).
package enum Diffusion {
  /// Turns a prediction into the clean estimate.
  package static func cleanEstimate(
    of prediction: inout [Float], at x: [Float], alphaBar: Double, kind: Manifest.Prediction
  ) {
    let alpha = Float(pow(alphaBar, 0.5))
    let sigma = Float(pow(1 - alphaBar, 0.5))
    switch kind {
    case .v: combine(&prediction, x) { alpha * $1 - sigma * $0 }
    case .eps: combine(&prediction, x) { ($1 - sigma * $0) / alpha }
    }
  }

  /// Applies guidance to `conditional` in place; scale 1 leaves it unchanged.
  package static func guide(
    _ conditional: inout [Float], unconditional: [Float], scale: Double
  ) {
    let weight = Float(scale)
    combine(&conditional, unconditional) { $1 + weight * ($0 - $1) }
  }

  /// A draw from q(x_s | x_t, x0): the ancestral step.
  package static func ddpm(
    _ x: inout [Float], towards x0: [Float], noise: [Float], from now: Double, to next: Double
  ) {
    let alpha = now / next
    let signal = Float((1 - alpha) * pow(next, 0.5) / (1 - now))
    let state = Float(pow(alpha, 0.5) * (1 - next) / (1 - now))
    let spread = Float(pow(posteriorVariance(now, next), 0.5))
    combine(&x, x0, noise) { signal * $1 + state * $0 + spread * $2 }
  }

  /// The DDIM step; eta 0 needs no noise.
  package static func ddim(
    _ x: inout [Float], towards x0: [Float], noise: [Float]?, from now: Double, to next: Double,
    eta: Double
  ) {
    let variance = pow(eta, 2) * posteriorVariance(now, next)
    let alpha = Float(pow(now, 0.5))
    let sigma = Float(pow(1 - now, 0.5))
    let alphaNext = Float(pow(next, 0.5))
    let direction = Float(pow(max(1 - next - variance, 0), 0.5))
    if eta != 0, let noise {
      let spread = Float(pow(variance, 0.5))
      combine(&x, x0, noise) {
        alphaNext * $1 + direction * (($0 - alpha * $1) / sigma) + spread * $2
      }
    } else {
      combine(&x, x0) { alphaNext * $1 + direction * (($0 - alpha * $1) / sigma) }
    }
  }

  /// Variance of q(x_s | x_t, x0).
  package static func posteriorVariance(_ now: Double, _ next: Double) -> Double {
    (1 - now / next) * (1 - next) / (1 - now)
  }

  /// First-order DPM-Solver++ step towards a (possibly extrapolated) x0.
  package static func dpmpp(
    _ x: inout [Float], towards x0: [Float], from now: Double, to next: Double
  ) {
    let keep = pow((1 - next) / (1 - now), 0.5)
    let kept = Float(keep)
    let gain = Float(pow(next, 0.5) - keep * pow(now, 0.5))
    combine(&x, x0) { kept * $0 + gain * $1 }
  }

  /// Second-order multistep estimate from two x0 and the last two steps in half log-SNR.
  package static func extrapolate(
    _ x0: inout [Float], before: [Float], step: Double, stepBefore: Double
  ) {
    let weight = step / (2 * stepBefore)
    let (own, other) = (Float(1 + weight), Float(weight))
    combine(&x0, before) { own * $0 - other * $1 }
  }

  /// `a[i] = body(a[i], b[i])`; both have the same length.
  @inline(__always)
  private static func combine(_ a: inout [Float], _ b: [Float], _ body: (Float, Float) -> Float) {
    precondition(a.count == b.count, "levels have one shape")
    a.withUnsafeMutableBufferPointer { a in
      b.withUnsafeBufferPointer { b in
        for i in a.indices { a[i] = body(a[i], b[i]) }
      }
    }
  }

  @inline(__always)
  private static func combine(
    _ a: inout [Float], _ b: [Float], _ c: [Float], _ body: (Float, Float, Float) -> Float
  ) {
    precondition(a.count == b.count && a.count == c.count, "levels have one shape")
    a.withUnsafeMutableBufferPointer { a in
      b.withUnsafeBufferPointer { b in
        c.withUnsafeBufferPointer { c in
          for i in a.indices { a[i] = body(a[i], b[i], c[i]) }
        }
      }
    }
  }
}
