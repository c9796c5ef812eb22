#if COREML_SHIM
  import CoreMLShim
  import DiffusionCore
  import DiffusionCoreML
  import Foundation
  import MatryoshkaDiffusion
  import Synchronization
  import TestBundle
  import Testing

  /// Several callers at once, arrays that are filled again, and what is said when something fails.
  @Suite struct ReuseTests {
    private struct Broken: LocalizedError {
      var errorDescription: String? { "The weights are missing." }
    }

    private func temporary() -> URL {
      FileManager.default.temporaryDirectory.appending(path: "reuse-\(UUID().uuidString)")
    }

    /// The compiled model is a folder with one file; others may run meanwhile.
    private static let compile: CompiledModels.Compile = { _ in
      let place = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
      try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
      try Data([1]).write(to: place.appending(path: "model"))
      try await Task.sleep(for: .milliseconds(3))
      return place
    }

    @Test func twoPreparationsAtOnceCompileEachPackageOnce() async throws {
      let small = try SmallBundle()
      let folder = temporary()
      defer { try? FileManager.default.removeItem(at: folder) }
      let count = Mutex(0)
      let models = CompiledModels(bundle: small.bundle, base: folder) {
        count.withLock { $0 += 1 }
        return try await ReuseTests.compile($0)
      }
      async let first: Void = models.prepare()
      async let second: Void = models.prepare()
      _ = try await (first, second)
      #expect(count.withLock { $0 } == 3)
    }

    /// As two processes do, which cannot wait for each other.
    @Test func whoeverCompilesLaterTakesWhatIsThere() async throws {
      let small = try SmallBundle()
      let folder = temporary()
      defer { try? FileManager.default.removeItem(at: folder) }
      let bundle = small.bundle
      try await withThrowingTaskGroup(of: Void.self) { group in
        for _ in 0..<8 {
          group.addTask {
            try await CompiledModels(bundle: bundle, base: folder, compile: ReuseTests.compile).prepare()
          }
        }
        try await group.waitForAll()
      }
      let left = try FileManager.default.subpathsOfDirectory(atPath: folder.path)
      #expect(left.filter { $0.hasSuffix("/model") }.count == 3)
      #expect(!left.contains { $0.hasSuffix(".partial") })
    }

    @Test func aPackageThatIsAskedForTwiceAtOnceIsOpenedOnce() async throws {
      let small = try SmallBundle()
      let folder = temporary()
      defer { try? FileManager.default.removeItem(at: folder) }
      let models = CompiledModels(bundle: small.bundle, base: folder, compile: ReuseTests.compile)
      let opened = Mutex(0)
      let runtime = CoreMLRuntime(models: models) { _, _ in
        opened.withLock { $0 += 1 }
        return MLModel { _, _ in [:] }
      }
      let package = small.bundle.manifest.packages[0]
      async let first: Void = runtime.load(package)
      async let second: Void = runtime.load(package)
      _ = try await (first, second)
      #expect(opened.withLock { $0 } == 1)
    }

    @Test func aRuntimeOfAnotherBundleIsRefused() async throws {
      let teacher = try SmallBundle()
      let student = try SmallBundle(.student)
      let models = CompiledModels(
        bundle: student.bundle, base: temporary(), compile: ReuseTests.compile)
      let pipeline = Pipeline(bundle: teacher.bundle, runtime: CoreMLRuntime(models: models))
      await #expect(throws: MatryoshkaError.self) { try await pipeline.prepare() }
    }

    /// What the host gives lies in the same arrays at every step; what a package puts out never does.
    @Test func inputsAreFilledAgain() async throws {
      let small = try SmallBundle()
      let folder = temporary()
      defer { try? FileManager.default.removeItem(at: folder) }
      let models = CompiledModels(bundle: small.bundle, base: folder, compile: ReuseTests.compile)
      let packages = small.bundle.manifest.packages
      let inputs = Mutex<[String: [ObjectIdentifier]]>([:])
      let runtime = CoreMLRuntime(models: models) { url, _ in
        let name = url.deletingPathExtension().lastPathComponent
        guard let package = packages.first(where: { $0.name == name }) else { throw Broken() }
        return MLModel { given, _ in
          inputs.withLock { seen in
            for (name, array) in given { seen[name, default: []].append(ObjectIdentifier(array)) }
          }
          return try Dictionary(
            uniqueKeysWithValues: package.outputs.map {
              let shape = $0.shape.map { NSNumber(value: $0) }
              let array = try MLMultiArray(shape: shape, dataType: .float16)
              array.withUnsafeMutableBytes { bytes, _ in
                _ = bytes.initializeMemory(as: UInt8.self, repeating: 0)
              }
              return ($0.name, array)
            })
        }
      }
      let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
      let request = PictureRequest(prompt: "", sampler: SamplerSettings(steps: 4))
      for try await _ in pipeline.generate(request) {}
      let seen = inputs.withLock { $0 }
      for name in ["x_8", "x_4", "temb_8", "temb_4"] {
        #expect(Set(seen[name] ?? []).count == 1 && (seen[name] ?? []).count >= 4, "\(name)")
      }
      let given = Set(["x_8", "x_4", "temb_8", "temb_4"].compactMap { seen[$0]?.first })
      #expect(given.count == 4)
      #expect(given.isDisjoint(with: (seen["features_4"] ?? []) + (seen["hidden_4"] ?? [])))
    }

    @Test func numbersOfAnUnknownTypeAreRefusedByName() {
      let array = MLMultiArray(shape: [2], dataType: .int8, padding: 0)
      let error = #expect(throws: MatryoshkaError.self) { try MultiArrays.tensor(array, named: "hidden") }
      #expect(
        error?.errorDescription
          == "package hidden: has numbers of a type that is not known here (131080).")
    }

    @Test func doublesAndPaddedHalvesAreRead() throws {
      let double = MLMultiArray(shape: [1, 2], dataType: .double, padding: 1)
      double.withUnsafeMutableBytes { bytes, _ in
        bytes.storeBytes(of: 1.5, toByteOffset: 0, as: Double.self)
        bytes.storeBytes(of: -2.5, toByteOffset: 8, as: Double.self)
      }
      #expect(try MultiArrays.tensor(double, named: "x").values == [1.5, -2.5])
      let half = MLMultiArray(shape: [2, 3], dataType: .float16, padding: 2)
      half.withUnsafeMutableBytes { bytes, strides in
        for place in 0..<6 {
          let byte = 2 * (place / 3 * strides[0] + place % 3 * strides[1])
          bytes.storeBytes(of: HalfPrecision.bits(Float(place)), toByteOffset: byte, as: UInt16.self)
        }
      }
      #expect(try MultiArrays.tensor(half, named: "x").values == [0, 1, 2, 3, 4, 5])
    }

    @Test func causesAreKept() async throws {
      let small = try SmallBundle()
      let (bundle, folder) = (small.bundle, temporary())
      defer { try? FileManager.default.removeItem(at: folder) }
      let package = bundle.manifest.packages[0]
      let broken = CompiledModels(bundle: bundle, base: folder) { _ in throw Broken() }
      let models = CompiledModels(bundle: bundle, base: folder, compile: ReuseTests.compile)
      let unopened = CoreMLRuntime(models: models) { _, _ in throw Broken() }
      let failing = CoreMLRuntime(models: models) { _, _ in MLModel { _, _ in throw Broken() } }
      try await failing.load(package)
      let given = try Dictionary(
        uniqueKeysWithValues: package.inputs.map { ($0.name, try Tensor(zeros: $0.shape)) })
      let blocked = temporary()
      try Data([1]).write(to: blocked)
      defer { try? FileManager.default.removeItem(at: blocked) }
      let nowhere = CompiledModels(bundle: bundle, base: blocked, compile: ReuseTests.compile)
      let works: [(cause: String, work: @Sendable () async throws -> Void)] = [
        ("The weights are missing", { try await broken.prepare() }),
        (
          "The weights are missing",
          { try await CompiledBundle.make(of: bundle, at: folder.appending(path: "x")) { _ in throw Broken() } }
        ),
        (
          "The weights are missing",
          { _ = try await Placement(of: package, models: models) { _, _ in throw Broken() } }
        ),
        ("The weights are missing", { try await unopened.load(package) }),
        ("The weights are missing", { try await failing.run(package, context: 0, giving: given) }),
        ("cannot be made (", { try await nowhere.prepare() }),
      ]
      for (cause, work) in works {
        let error = await #expect(throws: MatryoshkaError.self) { try await work() }
        #expect(error?.errorDescription?.contains(cause) == true)
      }
    }
  }
#endif
