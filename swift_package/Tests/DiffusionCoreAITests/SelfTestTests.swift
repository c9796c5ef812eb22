#if COREAI_SHIM
  import CoreAIShim
  import DiffusionCore
  import DiffusionCoreAI
  import Foundation
  import MatryoshkaDiffusion
  import TestBundle
  import Testing

  /// One prediction against the golden record, and the units that are tried if it is off.
  @Suite struct SelfTestTests {
    /// A bundle whose golden record holds what the fake packages compute, by formulas of its own and in
    /// single precision, plus `error` in every number.
    private func recorded(
      _ kind: SmallBundle.Kind = .nested, plus error: Float = 0, bits: Int = 16
    ) throws -> SmallBundle {
      let plain = try SmallBundle(kind, format: .coreai)
      func mean(_ numbers: [Float]) -> Float { numbers.reduce(0, +) / Float(numbers.count) }
      func noisy(_ side: Int) -> [Float] { (0..<3 * side * side).map { Float($0 % 11) / 8 - 0.5 } }
      // The record's only moment is the table index 1, so the time is 0.
      let times = try plain.bundle.manifest.levels.map { mean(try plain.bundle.timeEmbedding($0, 0).values) }
      let hidden = { (side: Int, sum: Float) in FakePackages.numbers([1, 3, side, side], sum) }
      let outer: Float
      let inner: Float
      if kind == .functions {
        outer = mean(noisy(8)) + times[0] + mean(noisy(4)) + times[1]
        inner = outer
      } else {
        let features = mean(hidden(4, mean(noisy(8)) + times[0]))
        inner = mean(noisy(4)) + times[1] + features
        outer = mean(noisy(8)) + mean(hidden(4, inner))
      }
      func tensor(_ side: Int, _ values: [Float]) throws -> Tensor {
        try Tensor(shape: [1, 1, 3, side, side], values: values)
      }
      return try SmallBundle(
        kind, format: .coreai, weightBits: bits,
        golden: [
          ("x_t_8", try tensor(8, noisy(8))), ("x_t_4", try tensor(4, noisy(4))),
          ("prediction_8", try tensor(8, hidden(8, outer).map { $0 + error })),
          ("prediction_4", try tensor(4, hidden(4, inner).map { $0 + error })),
        ])
    }

    @Test(arguments: [SmallBundle.Kind.nested, .functions])
    func aDeviceThatComputesRightPasses(kind: SmallBundle.Kind) async throws {
      let small = try recorded(kind)
      let cache = FakePackages(of: small.bundle, padding: 3).cache()
      let runtime = try CoreAIRuntime(bundle: small.bundle, cache: cache)
      let found = try await runtime.selfTest()
      #expect(found.isFirstChoice && found.remark == nil && found.floor == 40)
      #expect(found.attempts.map(\.units) == [nil])
      #expect(found.attempts[0].psnr > 55 && found.attempts[0].psnr.isFinite)
    }

    /// The twin: the same packages against a record of something else.
    @Test func aRecordOfAnotherNetworkFailsOnEveryUnit() async throws {
      let small = try recorded(plus: 0.125)
      let runtime = try CoreAIRuntime(bundle: small.bundle, cache: FakePackages(of: small.bundle).cache())
      let error = await #expect(throws: MatryoshkaError.self) { try await runtime.selfTest() }
      #expect(error?.code == "self_test_failed")
      let said = try #require(error?.errorDescription)
      for name in ["the units of the manifest", "cpuAndGPU", "cpuOnly"] {
        #expect(said.contains("\(name) reached "))
      }
      #expect(said.hasSuffix("expected 40.0 dB of the golden record."))
    }

    private struct Case: Sendable {
      let first: Manifest.ComputeUnits?
      let wrong: Set<SpecializationOptions>
      let tried: [Manifest.ComputeUnits?]
    }

    /// A unit that is slightly wrong is left, and the GPU is asked before the CPU. The CPU is never the
    /// judge: where it is wrong itself, the GPU still passes.
    @Test func theNextUnitsAreTriedAndNoneJudgesAnother() async throws {
      let cases = [
        Case(first: .cpuAndNeuralEngine, wrong: [], tried: [.cpuAndNeuralEngine]),
        Case(first: .cpuAndNeuralEngine, wrong: [.engine], tried: [.cpuAndNeuralEngine, .cpuAndGPU]),
        Case(
          first: .cpuAndNeuralEngine, wrong: [.engine, .cpuOnly],
          tried: [.cpuAndNeuralEngine, .cpuAndGPU]),
        Case(
          first: .cpuAndNeuralEngine, wrong: [.engine, .gpu],
          tried: [.cpuAndNeuralEngine, .cpuAndGPU, .cpuOnly]),
        Case(first: nil, wrong: [.default], tried: [nil, .cpuAndGPU]),
        Case(first: .cpuAndGPU, wrong: [.gpu], tried: [.cpuAndGPU, .cpuOnly]),
        Case(first: .cpuOnly, wrong: [.gpu, .default], tried: [.cpuOnly]),
      ]
      let small = try recorded()
      for one in cases {
        let packages = FakePackages(of: small.bundle) { one.wrong.contains($0) ? 0.05 : 0 }
        let cache = packages.cache()
        let runtime = try CoreAIRuntime(
          bundle: small.bundle, computeUnits: one.first, cache: cache)
        let found = try await runtime.selfTest()
        #expect(found.attempts.map(\.units) == one.tried)
        #expect(found.attempts.dropLast().allSatisfy { $0.psnr < 40 && $0.psnr > 10 })
        #expect(found.attempts.last.map { $0.psnr >= 40 } == true)
        // The pictures that follow are made on the units that passed.
        let before = cache.specialized.count
        try await runtime.load(small.bundle.manifest.packages[0])
        #expect(cache.specialized.count == before)
        let last = (one.tried.last ?? nil) ?? .all
        #expect(cache.events.last?.options == last.specializations.first)
      }
    }

    @Test func whatIsNotFiniteOrFailsDoesNotPass() async throws {
      let small = try recorded()
      let wrong = FakePackages(of: small.bundle) { $0 == .engine ? .nan : 0 }
      let runtime = try CoreAIRuntime(
        bundle: small.bundle, computeUnits: .cpuAndNeuralEngine, cache: wrong.cache())
      let found = try await runtime.selfTest()
      #expect(found.attempts.map(\.psnr).first == -.infinity)
      #expect(
        found.remark
          == "The packages run on cpuAndGPU, since cpuAndNeuralEngine reached no dB against the golden "
          + "record, where 40.0 dB are needed.")
      let refusing = FakePackages(of: small.bundle, refusing: [.gpu])
      let other = try CoreAIRuntime(
        bundle: small.bundle, computeUnits: .cpuAndGPU, cache: refusing.cache())
      let next = try await other.selfTest()
      #expect(next.attempts.map(\.units) == [.cpuAndGPU, .cpuOnly])
      #expect(next.attempts[0].failure?.contains("No room on the unit") == true)
    }

    @Test func aRecordThatLacksSomethingIsRefused() async throws {
      let small = try SmallBundle(format: .coreai)
      let runtime = try CoreAIRuntime(bundle: small.bundle, cache: FakePackages(of: small.bundle).cache())
      let error = await #expect(throws: MatryoshkaError.self) { try await runtime.selfTest() }
      #expect(error?.errorDescription == "tensor file: has no tensor x_t_8.")
    }

    @Test func aCancelledTestKeepsTheUnits() async throws {
      let small = try recorded()
      let packages = FakePackages(of: small.bundle)
      let cache = packages.cache()
      let runtime = try CoreAIRuntime(
        bundle: small.bundle, computeUnits: .cpuAndNeuralEngine, cache: cache)
      let work = Task {
        withUnsafeCurrentTask { $0?.cancel() }
        return try await runtime.selfTest()
      }
      await #expect(throws: CancellationError.self) { try await work.value }
      try await runtime.load(small.bundle.manifest.packages[0])
      #expect(cache.specialized == [.engine])
    }

    /// The floors of mdm verify for compressed packages.
    @Test(arguments: [(16, 40.0), (8, 30), (6, 20), (4, 8), (3, 4), (2, 0)])
    func compressedWeightsNeedLess(bits: Int, floor: Double) throws {
      let small = try SmallBundle(format: .coreai, weightBits: bits)
      #expect(GoldenProbe.floor(of: small.bundle.manifest) == floor)
    }

    /// What a palette of two bits costs is no fault of the device; what costs more than that is one.
    @Test(arguments: [(16, false), (8, false), (6, false), (4, true), (2, true)])
    func whatAPaletteCostsPasses(bits: Int, passes: Bool) async throws {
      let small = try recorded(plus: 0.25, bits: bits)
      let runtime = try CoreAIRuntime(
        bundle: small.bundle, computeUnits: .cpuOnly, cache: FakePackages(of: small.bundle).cache())
      guard passes else {
        await #expect(throws: MatryoshkaError.self) { try await runtime.selfTest() }
        return
      }
      let found = try await runtime.selfTest()
      #expect(found.isFirstChoice && found.floor == GoldenProbe.floor(of: small.bundle.manifest))
      #expect(found.attempts[0].psnr > 8 && found.attempts[0].psnr < 20)
      // The twin: an error as large as the numbers themselves.
      let wrong = FakePackages(of: small.bundle) { _ in 8 }
      let other = try CoreAIRuntime(
        bundle: small.bundle, computeUnits: .cpuOnly, cache: wrong.cache())
      await #expect(throws: MatryoshkaError.self) { try await other.selfTest() }
    }
  }
#endif
