#if COREAI_SHIM
  import CoreAIShim
  import DiffusionCore
  import DiffusionCoreAI
  import Synchronization
  import TestBundle
  import Testing

  /// What comes while a package runs waits for the end of the run, and keeps its place in the order.
  @Suite struct TurnsTests {
    private final class Order: Sendable {
      private let names = Mutex<[String]>([])
      var all: [String] { names.withLock { $0 } }
      func note(_ name: String) { names.withLock { $0.append(name) } }
    }

    /// A package whose runs end when they are told to.
    private struct Gated: Sendable {
      let package: Manifest.Package
      let order = Order()
      private let begun = AsyncStream<Void>.makeStream()
      private let gate = AsyncStream<Void>.makeStream()

      init(_ bundle: BundleFolder) { package = bundle.manifest.packages[0] }

      func cache(of bundle: BundleFolder) -> AIModelCache {
        let packages = FakePackages(of: bundle)
        return AIModelCache { _, _ in
          let program = Program(
            inputs: packages.described(package.inputs), outputs: packages.described(package.outputs)
          ) { _ in
            begun.continuation.yield()
            for await _ in gate.stream { break }
            order.note("run")
            return Dictionary(
              uniqueKeysWithValues: package.outputs.map { ($0.name, FakePackages.numbers($0.shape, 0)) })
          }
          return ["main": program]
        }
      }

      func waitUntilItRuns() async { for await _ in begun.stream { break } }
      func open() { gate.continuation.yield() }
    }

    private enum Call: CaseIterable { case release, unload }

    /// Time enough for a call that does not wait, and for one that does to take its place.
    private func pause() async throws { try await Task.sleep(for: .milliseconds(200)) }

    /// Also for a caller who was cancelled: memory is released all the same.
    @Test(arguments: Call.allCases, [false, true])
    private func aRunEndsBeforeItsPackageIsReleased(call: Call, isCancelled: Bool) async throws {
      let small = try SmallBundle(format: .coreai)
      let gated = Gated(small.bundle)
      let (package, order) = (gated.package, gated.order)
      let runtime = try CoreAIRuntime(bundle: small.bundle, cache: gated.cache(of: small.bundle))
      try await runtime.load(package)
      let run = Task { try await runtime.run(package, context: 0, giving: package.zeros()) }
      await gated.waitUntilItRuns()
      let release = Task {
        if isCancelled { withUnsafeCurrentTask { $0?.cancel() } }
        switch call {
        case .release: await runtime.release()
        case .unload: await runtime.unload(package)
        }
        order.note("release")
      }
      try await pause()
      #expect(order.all.isEmpty)
      gated.open()
      try await run.value
      await release.value
      #expect(order.all == ["run", "release"])
      // What the run put out is released with everything else, and stays if the package alone is.
      let kept = try? await runtime.value(package.outputs[0].name, context: 0)
      #expect((kept != nil) == (call == .unload))
      let error = await #expect(throws: MatryoshkaError.self) {
        try await runtime.run(package, context: 0, giving: package.zeros())
      }
      #expect(error?.errorDescription == "package down_8: is not loaded.")
    }

    /// A load that comes after an unload that waits must not take the package for a loaded one.
    @Test func aLoadAfterAWaitingUnloadLoadsAgain() async throws {
      let small = try SmallBundle(format: .coreai)
      let gated = Gated(small.bundle)
      let package = gated.package
      let runtime = try CoreAIRuntime(bundle: small.bundle, cache: gated.cache(of: small.bundle))
      try await runtime.load(package)
      let run = Task { try await runtime.run(package, context: 0, giving: package.zeros()) }
      await gated.waitUntilItRuns()
      let unload = Task { await runtime.unload(package) }
      try await pause()
      let load = Task { try await runtime.load(package) }
      try await pause()
      gated.open()
      try await run.value
      await unload.value
      try await load.value
      gated.open()
      try await runtime.run(package, context: 0, giving: package.zeros())
      #expect(gated.order.all == ["run", "run"])
    }
  }
#endif
