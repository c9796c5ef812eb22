import DiffusionCore
import Testing

@Suite struct DiffusionTests {
  private let x: [Float] = [0.3, -1.2, 2]
  private let x0: [Float] = [0.1, -0.9, 1]

  @Test func predictionsOfTheTrueNoiseGiveTheCleanPicture() {
    let alphaBar = 0.4
    let (alpha, sigma) = (Float(alphaBar.squareRoot()), Float((1 - alphaBar).squareRoot()))
    var eps = zip(x, x0).map { ($0 - alpha * $1) / sigma }
    var v = zip(x, x0).map { (alpha * $0 - $1) / sigma }
    Diffusion.cleanEstimate(of: &eps, at: x, alphaBar: alphaBar, kind: .eps)
    Diffusion.cleanEstimate(of: &v, at: x, alphaBar: alphaBar, kind: .v)
    for (found, wanted) in zip(eps + v, x0 + x0) { #expect(abs(found - wanted) < 1e-6) }
  }

  @Test func theStepToCleanEndsAtTheCleanEstimate() {
    var states = [x, x, x]
    Diffusion.ddim(&states[0], towards: x0, noise: nil, from: 0.4, to: 1, eta: 0)
    Diffusion.ddpm(&states[1], towards: x0, noise: [9, 9, 9], from: 0.4, to: 1)
    Diffusion.dpmpp(&states[2], towards: x0, from: 0.4, to: 1)
    for state in states { #expect(state == x0) }
  }

  @Test func guidanceOfOneIsTheConditionalPrediction() {
    var conditional = x
    Diffusion.guide(&conditional, unconditional: x0, scale: 1)
    for (found, wanted) in zip(conditional, x) { #expect(abs(found - wanted) < 1e-6) }
  }

  @Test func theQuantileIsThatOfTheSortedValues() {
    let values: [Float] = [-4, 1, 3, -2, 0, -0.5, 7]
    #expect(Thresholding.absoluteQuantile(of: values, 0) == 0)
    #expect(Thresholding.absoluteQuantile(of: values, 0.5) == 2)
    #expect(Thresholding.absoluteQuantile(of: values, 0.75) == 3.5)
    #expect(Thresholding.absoluteQuantile(of: values, 1) == 7)
  }

  @Test func aStepWithWrongShapesIsRefused() throws {
    let table = [1, 0.5, 0.1]
    let schedule = try NoiseSchedule(base: table, tables: [table])
    var sampler = try Sampler(
      schedule: schedule, settings: SamplerSettings(kind: .ddpm, steps: 2), prediction: .v,
      threshold: .none, imageScales: [1])
    var states = [try Tensor(zeros: [1, 3, 2, 2])]
    let small = [try Tensor(zeros: [1, 3, 1, 1])]
    #expect(throws: MatryoshkaError.self) { try sampler.step(&states, prediction: small, noise: small) }
    let own = states
    #expect(throws: MatryoshkaError.self) { try sampler.step(&states, prediction: own, noise: nil) }
  }
}
